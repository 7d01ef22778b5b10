//! Sessions of TLS that clients keep (RFC 8446 §2.2), so that coming back costs neither a certificate nor a signature, at
//! whichever process of the installation and also after a restart. Nothing is remembered here.
//!
//! A ticket is a session's state under a key that follows from the installation's keys and the time: half a day later
//! another key makes tickets, and two half days later nobody can open the older ones. A ticket that can't be opened
//! leads to a whole handshake.

use std::fmt;
use std::sync::Arc;

use idl::clock::{Entropy, SharedClock, SharedEntropy};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Prk, Salt};
use rustls::ProtocolVersion;
use rustls::server::ProducesTickets;

/// How long a key makes tickets; for as long again it opens them. Random nonces are good for 2³² tickets in that time.
const PERIOD_S: u32 = 12 * 60 * 60;
const SALT: &[u8] = b"campanile tls tickets 1";
/// The period and the number of the key, each as four bytes. In the clear: it tells no more than when the ticket was made.
const HEAD_BYTES: usize = 8;

/// What the keys of tickets follow from, newest first.
#[derive(Clone)]
pub struct TicketKeys(Arc<[(u32, Prk)]>);

impl TicketKeys {
    /// From the numbered keys of an installation, the newest first.
    pub(super) fn of(keys: &[(u32, [u8; 32])]) -> Self {
        let salt = Salt::new(HKDF_SHA256, SALT);
        Self(keys.iter().map(|(number, key)| (*number, salt.extract(key))).collect())
    }

    /// For a process that has no keys of an installation: its tickets are good at itself alone, until it ends.
    pub fn of_this_process(entropy: &dyn Entropy) -> Self {
        let mut key = [0; 32];
        entropy.fill(&mut key);
        Self::of(&[(0, key)])
    }
}

/// Makes and opens tickets.
pub struct Tickets {
    keys: TicketKeys,
    clock: SharedClock,
    entropy: SharedEntropy,
}

impl Tickets {
    /// Tickets that everyone with the same keys opens.
    pub fn new(keys: &TicketKeys, clock: &SharedClock, entropy: &SharedEntropy) -> Arc<Self> {
        Arc::new(Self { keys: keys.clone(), clock: Arc::clone(clock), entropy: Arc::clone(entropy) })
    }

    fn period(&self) -> u32 {
        // The year 186,000 is far.
        u32::try_from(self.clock.now_ms() / 1000 / u64::from(PERIOD_S)).unwrap_or(u32::MAX)
    }
}

fn key_of(key: &Prk, period: u32) -> Option<LessSafeKey> {
    let key = UnboundKey::from(key.expand(&[&period.to_be_bytes()], &AES_256_GCM).ok()?);
    Some(LessSafeKey::new(key))
}

/// Whether what rustls wants to have kept is a session of TLS 1.3. There a ticket alone opens nothing that was recorded: each
/// resumption agrees on secrets of its own. A ticket of TLS 1.2 holds the session's only secret and travels in the clear, so
/// whoever came by the keys of the installation years later could read what was recorded; such sessions get none.
///
/// The state begins with the server's name, if the client gave one (1 and a length before it, else 0), then the version.
fn is_of_tls_1_3(state: &[u8]) -> bool {
    let rest = match state {
        [0, rest @ ..] => Some(rest),
        [1, length, rest @ ..] => rest.get(usize::from(*length)..),
        _ => None,
    };
    rest.is_some_and(|rest| rest.starts_with(&u16::from(ProtocolVersion::TLSv1_3).to_be_bytes()))
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        PERIOD_S
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        if !is_of_tls_1_3(plain) {
            return None;
        }
        let (number, key) = self.keys.0.first()?;
        let period = self.period();
        let head = [period.to_be_bytes(), number.to_be_bytes()].concat();
        let mut nonce = [0; NONCE_LEN];
        self.entropy.fill(&mut nonce);
        let mut sealed = plain.to_vec();
        let nonced = Nonce::assume_unique_for_key(nonce);
        key_of(key, period)?.seal_in_place_append_tag(nonced, Aad::from(&head), &mut sealed).ok()?;
        Some([head.as_slice(), &nonce, &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (head, rest) = ticket.split_first_chunk::<HEAD_BYTES>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let [period, number] = [head.first_chunk()?, head.last_chunk()?].map(|bytes| u32::from_be_bytes(*bytes));
        let now = self.period();
        if period != now && Some(period) != now.checked_sub(1) {
            return None;
        }
        let (_, key) = self.keys.0.iter().find(|(known, _)| *known == number)?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let mut plain = sealed.to_vec();
        let length = key_of(key, period)?.open_in_place(nonce, Aad::from(head), &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.0.iter().map(|(number, _)| number)).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use idl::clock::{Clock, SystemEntropy};
    use proptest::prelude::*;

    use super::*;

    const PERIOD_MS: u64 = 1000 * PERIOD_S as u64;
    /// Of no server name, version 1.3.
    const STATE: &[u8] = &[0, 3, 4, 0x13, 1, 9, 9, 9];

    #[derive(Default)]
    struct At(AtomicU64);

    impl Clock for At {
        fn now_ms(&self) -> u64 {
            self.0.load(Ordering::SeqCst)
        }
    }

    fn tickets(keys: &[(u32, [u8; 32])]) -> (Arc<Tickets>, Arc<At>) {
        let time = Arc::new(At(AtomicU64::new(1_800_000_000_000)));
        let entropy: SharedEntropy = Arc::new(SystemEntropy);
        (Tickets::new(&TicketKeys::of(keys), &(Arc::clone(&time) as SharedClock), &entropy), time)
    }

    #[test]
    fn whoever_has_the_key_opens_a_ticket_until_the_period_after_its_own_has_ended() {
        let (ours, _) = tickets(&[(1, [1; 32])]);
        let (theirs, time) = tickets(&[(1, [1; 32])]);
        let ticket = ours.encrypt(STATE).expect("a ticket");
        assert_ne!(ours.encrypt(STATE), Some(ticket.clone()), "each has a nonce of its own");
        assert_eq!(theirs.decrypt(&ticket).as_deref(), Some(STATE));
        let into_period = time.now_ms() % PERIOD_MS;
        time.0.fetch_add(2 * PERIOD_MS - into_period - 1, Ordering::SeqCst);
        assert_eq!(theirs.decrypt(&ticket).as_deref(), Some(STATE));
        time.0.fetch_add(1, Ordering::SeqCst);
        assert_eq!(theirs.decrypt(&ticket), None);
        // Whoever's clock is behind does not open what was made under a key of the future.
        let newer = theirs.encrypt(STATE).expect("a ticket");
        assert_eq!(ours.decrypt(&newer), None);
    }

    #[test]
    fn a_ticket_is_good_while_its_key_is_in_the_ring() {
        let ticket = tickets(&[(1, [1; 32])]).0.encrypt(STATE).expect("a ticket");
        let rotating = tickets(&[(2, [2; 32]), (1, [1; 32])]).0;
        assert_eq!(rotating.decrypt(&ticket).as_deref(), Some(STATE));
        let newer = rotating.encrypt(STATE).expect("a ticket");
        let rotated = tickets(&[(2, [2; 32])]).0;
        assert_eq!(rotated.decrypt(&newer).as_deref(), Some(STATE));
        assert_eq!(rotated.decrypt(&ticket), None);
        assert_eq!(tickets(&[(1, [2; 32])]).0.decrypt(&ticket), None);
    }

    #[test]
    fn a_ticket_that_was_touched_anywhere_is_none() {
        let (tickets, _) = tickets(&[(1, [1; 32]), (0, [0; 32])]);
        let ticket = tickets.encrypt(STATE).expect("a ticket");
        for at in 0..ticket.len() {
            let mut touched = ticket.clone();
            touched[at] ^= 1;
            assert_eq!(tickets.decrypt(&touched), None, "byte {at}");
            assert_eq!(tickets.decrypt(&ticket[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn only_sessions_of_tls_1_3_are_kept_by_clients() {
        let (tickets, _) = tickets(&[(1, [1; 32])]);
        assert!(tickets.encrypt(&[1, 2, b'a', b'b', 3, 4, 0]).is_some());
        for other in [&[0, 3, 3, 0][..], &[1, 2, b'a', b'b', 3, 3], &[1, 9, 3, 4], &[2, 3, 4], &[1], &[0], &[]] {
            assert_eq!(tickets.encrypt(other), None, "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_no_ticket_opens_nothing(bytes in prop::collection::vec(any::<u8>(), 0..200), begins_well: bool) {
            let (tickets, time) = tickets(&[(1, [1; 32])]);
            let period = u32::try_from(time.now_ms() / PERIOD_MS).expect("now");
            let head = if begins_well { [period.to_be_bytes(), 1_u32.to_be_bytes()].concat() } else { Vec::new() };
            prop_assert_eq!(tickets.decrypt(&[head, bytes].concat()), None);
        }
    }
}
