//! What fuzzing calls (`fuzz/`): the promises of what reads the bytes of strangers, held against any bytes. Each panics if
//! one is broken.

use crate::{negotiate, stanza, websocket};

/// What a client says after login, and as messages of a WebSocket.
pub fn xml(input: &[u8]) {
    stanza::check(input);
    websocket::check(input);
}

/// What a client says until it is logged in and has a resource. Its notation is in `xmpp-frontend/src/negotiate/check.rs`.
pub fn login(input: &[u8]) {
    negotiate::check(input);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Every input that is kept for a target, by its name.
    fn kept(target: &str) -> Vec<(String, Vec<u8>)> {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
        let mut kept = Vec::new();
        for folder in ["seeds", "found"] {
            let Ok(entries) = std::fs::read_dir(fuzz.join(folder).join(target)) else { continue };
            for path in entries.map(|entry| entry.expect("an entry").path()) {
                kept.push((path.display().to_string(), std::fs::read(&path).expect("an input")));
            }
        }
        assert!(!kept.is_empty(), "nothing is kept for {target}");
        kept
    }

    #[test]
    fn inputs_that_fuzzing_keeps_break_no_promise() {
        for (name, input) in kept("xml") {
            println!("{name}");
            super::xml(input.get(1..).unwrap_or_default());
        }
        for (name, input) in kept("sasl") {
            println!("{name}");
            super::login(&input);
        }
    }
}
