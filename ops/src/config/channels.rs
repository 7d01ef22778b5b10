//! Channels that others serve: which, by whom, and where their secrets are.

use std::path::PathBuf;

use xmpp_frontend::ServedChannel;

use super::Domain;
use super::values::{Listed, Setting as _};

/// The longest secret.
const SECRET_BYTES_MAX: usize = 4096;

/// A channel that a component serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Its number.
    pub number: u16,
    /// The component's domain.
    pub name: String,
    /// File whose first line is what the component proves to know.
    pub secret: PathBuf,
}

impl Channel {
    /// Reads the secret. The error never says what the file holds.
    pub fn read(&self) -> Result<ServedChannel, String> {
        let Self { number, name, secret: file } = self;
        let place = format!("xmpp.channels: the secret of channel {number}, {},", file.display());
        let text = std::fs::read_to_string(file)
            .map_err(|error| format!("{place} can't be read: {error}; give a file that this user can read"))?;
        match text.lines().next() {
            Some(secret) if (1..=SECRET_BYTES_MAX).contains(&secret.len()) => {
                Ok(ServedChannel { number: *number, name: name.clone(), secret: secret.to_owned() })
            }
            _ => Err(format!("{place} must be the first line of that file, of at most {SECRET_BYTES_MAX} bytes")),
        }
    }
}

impl Listed for Channel {
    const EXPECTED: &'static str = "a list of numbers from 1 to 65535 other than 5, each with the component's domain and a file \
                                    whose first line is its secret, such as [\"7:rooms.example.com:/etc/campanile/rooms.secret\"], \
                                    with commas alone outside of files";

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ':');
        let (number, name, secret) = (parts.next()?, parts.next()?, parts.next()?);
        let number = number.parse().ok().filter(|number| *number > 0 && u32::from(*number) != idl::channel::PUSH)?;
        let Domain(name) = Domain::from_word(name)?;
        (!secret.is_empty() && !secret.contains('\0')).then(|| Self { number, name, secret: PathBuf::from(secret) })
    }

    fn text(&self) -> String {
        format!("{}:{}:{}", self.number, self.name, self.secret.display())
    }
}

/// Refuses channels that don't go together, or with the domain of the devices.
pub(super) fn check(channels: &[Channel], component: bool, domain: &Domain) -> Result<(), String> {
    for (index, channel) in channels.iter().enumerate() {
        let Channel { number, name, .. } = channel;
        if *name == domain.0 {
            return Err(format!("xmpp.channels: {name} is the domain of the devices; give the component another"));
        }
        let earlier = || channels.iter().take(index);
        if earlier().any(|other| other.number == *number) {
            return Err(format!("xmpp.channels: channel {number} is there twice; give each component its own"));
        }
        if earlier().any(|other| other.name == *name) {
            return Err(format!("xmpp.channels: {name} is there twice; give each channel a component of its own"));
        }
    }
    match (channels.is_empty(), component) {
        (false, false) => Err("xmpp.channels needs a listener for the components: set xmpp.component, such as \
                               \"127.0.0.1:5347\""
            .to_owned()),
        (true, true) => Err("xmpp.component needs channels to be served: set xmpp.channels, such as \
                             [\"7:rooms.example.com:/etc/campanile/rooms.secret\"], or xmpp.component = \"\""
            .to_owned()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channels(texts: &[&str]) -> Vec<Channel> {
        texts.iter().map(|text| Channel::parse(text).unwrap_or_else(|| panic!("{text}"))).collect()
    }

    #[test]
    fn a_channel_is_a_number_a_domain_and_a_file() {
        let text = "7:rooms.example.com:/etc/rooms:secret";
        let channel = Channel::parse(text).expect("whole");
        assert_eq!((channel.number, channel.name.as_str()), (7, "rooms.example.com"));
        assert_eq!(channel.text(), text);
        for wrong in ["", "7", "7:rooms", "7:rooms:", "0:rooms:f", "5:rooms:f", "65536:rooms:f", "7:Rooms:f", "7:a b:f"]
        {
            assert_eq!(Channel::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn channels_and_their_listener_go_together() {
        let domain = Domain("example.com".to_owned());
        let error = |texts: &[&str], component| check(&channels(texts), component, &domain).err();
        assert_eq!(error(&["7:a:f", "8:b:f"], true), None);
        assert_eq!(error(&[], false), None);
        for (texts, component, said) in [
            (&["7:a:f", "7:b:f"][..], true, "channel 7 is there twice"),
            (&["7:a:f", "8:a:f"], true, "a is there twice"),
            (&["7:example.com:f"], true, "is the domain of the devices"),
            (&["7:a:f"], false, "set xmpp.component"),
            (&[], true, "set xmpp.channels"),
        ] {
            let error = error(texts, component).unwrap_or_else(|| panic!("{texts:?}"));
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_secret_is_the_first_line_of_its_file_and_shown_nowhere() {
        let folder = tempfile::tempdir().expect("a folder");
        let secret = folder.path().join("secret");
        let channel = Channel { number: 7, name: "rooms".to_owned(), secret: secret.clone() };
        assert!(channel.read().expect_err("no file").contains("can't be read"));
        std::fs::write(&secret, "\n").expect("writes");
        assert!(channel.read().expect_err("empty").contains("must be the first line"));
        std::fs::write(&secret, "hunter2\nmore").expect("writes");
        let served = channel.read().expect("a secret");
        assert_eq!(served.secret, "hunter2");
        assert!(!format!("{served:?}").contains("hunter2"));
    }
}
