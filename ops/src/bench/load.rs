//! The generator as the bench sees it: worker processes that are given orders together.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::order::{Answer, Connect, Order};
use super::process::{Kept, Processes};

/// Devices of one worker: a process may hold 20,000 descriptors here, and elsewhere rarely less after asking.
const DEVICES_PER_WORKER: usize = 12_000;
/// This very program, also after another one was put in its place.
pub(super) const THIS_PROGRAM: &str = "/proc/self/exe";

/// Worker processes. They end with it.
pub(super) struct Load {
    workers: Vec<Worker>,
}

struct Worker {
    child: Kept,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Devices that it holds.
    devices: usize,
}

impl Load {
    /// As many workers as so many devices need.
    pub(super) fn for_devices(devices: usize) -> Result<Self> {
        Self::for_devices_at(devices, 1)
    }

    /// The same for devices that connect to several addresses in equal shares: each worker connects to one.
    pub(super) fn for_devices_at(devices: usize, addresses: usize) -> Result<Self> {
        let count = devices.div_ceil(addresses).div_ceil(DEVICES_PER_WORKER).max(1) * addresses;
        let workers = (0..count).map(|_| Worker::start()).collect::<Result<_>>()?;
        Ok(Self { workers })
    }

    /// Its processes.
    pub(super) fn processes(&self) -> Processes {
        Processes(self.workers.iter().map(|worker| worker.child.0.id()).collect())
    }

    /// Connects devices, which are spread over the workers by their place in the file; an error if one of them fails.
    pub(super) fn connect(&mut self, order: &Connect) -> Result<Answer> {
        self.connect_to(order, &[order.to])
    }

    /// The same with each worker's devices at one of these addresses, in turn.
    pub(super) fn connect_to(&mut self, order: &Connect, addresses: &[SocketAddr]) -> Result<Answer> {
        let mut orders = Vec::new();
        let (workers, mut from) = (self.workers.len(), order.from);
        for ((number, worker), to) in self.workers.iter_mut().enumerate().zip(addresses.iter().cycle()) {
            let share = |all: usize| (all + number) / workers;
            let (count, different) = (share(order.count), share(order.different));
            if order.stay {
                worker.devices += count;
            }
            orders.push(Order::Connect(Connect {
                to: *to,
                from,
                count,
                different,
                at_once: (order.at_once / workers).max(1),
                ..order.clone()
            }));
            from += different;
        }
        let answer = self.each(&orders)?;
        if answer.count < order.count as u64 {
            bail!("only {} of {} devices connected", answer.count, order.count);
        }
        Ok(answer)
    }

    /// Sets counts to zero.
    pub(super) fn forget(&mut self) -> Result<()> {
        self.every(&Order::Forget).map(|_| ())
    }

    /// Waits until each device has so many deliveries, counted from the last [`Load::forget`] on. An error if they do
    /// not come in time.
    pub(super) fn wait(&mut self, times: u64, patience: Duration) -> Result<Answer> {
        let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let orders: Vec<_> = self
            .workers
            .iter()
            .map(|worker| Order::Await { deliveries: worker.devices as u64 * times, patience_ms })
            .collect();
        let answer = self.each(&orders)?;
        let awaited: u64 = self.workers.iter().map(|worker| worker.devices as u64 * times).sum();
        if answer.count < awaited {
            bail!("only {} of {awaited} deliveries came, {} connections were lost", answer.count, answer.lost);
        }
        Ok(answer)
    }

    /// Gives the same order to all.
    pub(super) fn every(&mut self, order: &Order) -> Result<Answer> {
        let orders = vec![order.clone(); self.workers.len()];
        self.each(&orders)
    }

    /// Gives an order to the first.
    pub(super) fn first(&mut self, order: &Order) -> Result<Answer> {
        self.each(std::slice::from_ref(order))
    }

    fn each(&mut self, orders: &[Order]) -> Result<Answer> {
        for (worker, order) in self.workers.iter_mut().zip(orders) {
            let order = serde_json::to_string(order)?;
            writeln!(worker.orders, "{order}").context("a worker has ended")?;
            worker.orders.flush().context("a worker has ended")?;
        }
        let mut sum = Answer::default();
        for worker in self.workers.iter_mut().take(orders.len()) {
            let mut line = String::new();
            worker.answers.read_line(&mut line).context("a worker has ended")?;
            let answer: Answer = serde_json::from_str(&line).context("a worker has ended")?;
            if let Some(error) = answer.error {
                bail!("{error} ({} were done)", answer.count);
            }
            sum.count += answer.count;
            sum.lost += answer.lost;
            sum.resumed += answer.resumed;
            sum.received += answer.received;
            sum.sent += answer.sent;
            sum.regids.extend(answer.regids);
            sum.arrival_us.extend(answer.arrival_us);
            sum.late_us.extend(answer.late_us);
        }
        Ok(sum)
    }
}

impl Worker {
    fn start() -> Result<Self> {
        let mut child = Command::new(THIS_PROGRAM)
            .args(["bench", "worker"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("a worker can't be started")?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take());
        Ok(Self {
            child: Kept(child),
            orders: orders.context("a worker has no stdin")?,
            answers: BufReader::new(answers.context("a worker has no stdout")?),
            devices: 0,
        })
    }
}
