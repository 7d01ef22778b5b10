//! A gateway's front door that misbehaves on demand.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// Passes everything on to a gateway, until it is told otherwise. Goes on until the process ends.
#[derive(Clone)]
pub(crate) struct Proxy {
    address: SocketAddr,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    /// So many answers are not passed on: the connection is cut when they come.
    cuts: AtomicU32,
    silent: AtomicBool,
    silence: Mutex<()>,
    over: Condvar,
}

impl Proxy {
    pub(crate) fn before(gateway: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let proxy = Self { address: listener.local_addr().unwrap(), faults: Arc::default() };
        let faults = proxy.faults.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(gateway) else { continue };
                let (calls, answers) = (faults.clone(), faults.clone());
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || pass(from, to, || calls.wait()));
                thread::spawn(move || pass(server, client, || answers.wait() && !answers.cut()));
            }
        });
        proxy
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// The next so many answers are lost with their connections.
    pub(crate) fn cut_answers(&self, count: u32) {
        self.faults.cuts.store(count, Ordering::SeqCst);
    }

    /// How many answers are still to be lost.
    pub(crate) fn cuts_left(&self) -> u32 {
        self.faults.cuts.load(Ordering::SeqCst)
    }

    /// Accepts connections, and passes nothing on.
    pub(crate) fn be_silent(&self) {
        self.faults.silent.store(true, Ordering::SeqCst);
    }

    /// Passes everything on again, also what came meanwhile.
    pub(crate) fn go_on(&self) {
        let _silence = self.faults.silence.lock().unwrap();
        self.faults.silent.store(false, Ordering::SeqCst);
        self.faults.over.notify_all();
    }
}

impl Faults {
    fn wait(&self) -> bool {
        let mut silence = self.silence.lock().unwrap();
        while self.silent.load(Ordering::SeqCst) {
            silence = self.over.wait(silence).unwrap();
        }
        true
    }

    fn cut(&self) -> bool {
        self.cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |cuts| cuts.checked_sub(1)).is_ok()
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, go_on: impl Fn() -> bool) {
    let mut bytes = vec![0; 65536];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        if !go_on() || to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    for side in [from, to] {
        // It may be gone already.
        let _ = side.shutdown(Shutdown::Both);
    }
}
