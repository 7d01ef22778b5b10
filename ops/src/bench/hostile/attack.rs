//! What hostile peers do, which limit of a front is there for it, and how many of them come.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One way of being hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Attack {
    /// Connects and says nothing.
    SilentBeforeTls,
    /// Feeds a `ClientHello` byte by byte.
    SlowBeforeTls,
    /// Does the TLS handshake and says nothing.
    SilentBeforeLogin,
    /// Feeds a stream's header byte by byte.
    SlowBeforeLogin,
    /// Many from one address, of which each says nothing.
    Crowd,
    /// Tries one wrong password after the other.
    WrongPasswords,
    /// Tries one wrong password on each of many connections from one address.
    FailedLogins,
    /// Logs in and feeds a stanza byte by byte that never ends.
    SlowStanza,
    /// Logs in and never answers, as one does whose other half is gone.
    HalfOpen,
    /// Logs in, asks for much and never reads.
    ZeroWindow,
    /// Pings without end (XEP-0199).
    Pings,
    /// White space without end.
    WhiteSpace,
    /// Opens the push channel without end.
    Openings,
    /// Says what makes no sense on the push channel, without end.
    Payloads,
    /// Opens a channel that is not there, without end.
    UnknownChannels,
    /// Says a stanza over the limit.
    LargeStanza,
    /// Says a stanza that is nested too deep.
    DeepStanza,
    /// Says a slim frame that claims to have four gigabytes.
    LargeClaim,
}

/// Reasons of `campanile_front_streams_ended`, and the limits behind them as `campanile_front_limits_hit` names them.
pub(super) const REASONS: [(&str, &str); 11] = [
    ("login_time", "login_time_max"),
    ("handshakes_per_address", "handshakes_per_address_max"),
    ("login_attempts", "login_attempts_max"),
    ("failed_logins", "failed_logins_per_address_per_minute_max"),
    ("stanza_time", "stanza_time_max"),
    ("idle", "idle_time_max"),
    ("write_time", "write_time_max"),
    ("stanza_rate", "stanzas_in_per_second_max"),
    ("byte_rate", "bytes_in_per_second_max"),
    ("channel_queue_full", "channel_queue_max"),
    ("stanza_too_large", "stanza_bytes_max"),
];

/// Settings of the server under attack. Times are shorter than in an installation, so that a run sees their end; the number of
/// handshakes and of failed logins is smaller, so that a machine can go over it.
pub(super) const SETTINGS: [(&str, &str); 8] = [
    ("telemetry.listen", "127.0.0.1:0"),
    ("limits.xmpp_login_ms_max", "10000"),
    ("limits.xmpp_handshakes_per_address_max", "100"),
    ("limits.xmpp_failed_logins_per_address_per_minute_max", "100"),
    ("limits.xmpp_stanza_ms_max", "5000"),
    ("limits.xmpp_idle_ms_max", "15000"),
    ("limits.xmpp_probe_ms_max", "5000"),
    ("limits.xmpp_write_ms_max", "5000"),
];

impl Attack {
    /// All of them.
    pub(super) const ALL: [Self; 18] = [
        Self::SilentBeforeTls,
        Self::SlowBeforeTls,
        Self::SilentBeforeLogin,
        Self::SlowBeforeLogin,
        Self::Crowd,
        Self::WrongPasswords,
        Self::FailedLogins,
        Self::SlowStanza,
        Self::HalfOpen,
        Self::ZeroWindow,
        Self::Pings,
        Self::WhiteSpace,
        Self::Openings,
        Self::Payloads,
        Self::UnknownChannels,
        Self::LargeStanza,
        Self::DeepStanza,
        Self::LargeClaim,
    ];

    /// As figures have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::SilentBeforeTls => "silent before TLS",
            Self::SlowBeforeTls => "slow before TLS",
            Self::SilentBeforeLogin => "silent before login",
            Self::SlowBeforeLogin => "slow before login",
            Self::Crowd => "crowd of one address",
            Self::WrongPasswords => "wrong passwords",
            Self::FailedLogins => "failed logins of one address",
            Self::SlowStanza => "slow within a stanza",
            Self::HalfOpen => "half open",
            Self::ZeroWindow => "zero window",
            Self::Pings => "pings",
            Self::WhiteSpace => "white space",
            Self::Openings => "openings of a channel",
            Self::Payloads => "payloads on a channel",
            Self::UnknownChannels => "unknown channels",
            Self::LargeStanza => "large stanza",
            Self::DeepStanza => "deep stanza",
            Self::LargeClaim => "large claim in slim",
        }
    }

    /// For which of [`REASONS`] its streams are to end.
    pub(super) fn reasons(self) -> &'static [&'static str] {
        match self {
            Self::SilentBeforeTls | Self::SlowBeforeTls | Self::SilentBeforeLogin | Self::SlowBeforeLogin => {
                &["login_time"]
            }
            // Those for whom there was room are silent like others.
            Self::Crowd => &["handshakes_per_address", "login_time"],
            Self::WrongPasswords => &["login_attempts"],
            Self::FailedLogins => &["failed_logins"],
            Self::SlowStanza => &["stanza_time"],
            Self::HalfOpen => &["idle"],
            // A server that falls behind hears of several seconds at once.
            Self::ZeroWindow => &["write_time", "byte_rate"],
            Self::Pings | Self::UnknownChannels => &["stanza_rate"],
            Self::WhiteSpace => &["byte_rate"],
            // What the middle tier takes as fast as it comes is still too many stanzas.
            Self::Openings | Self::Payloads => &["channel_queue_full", "stanza_rate"],
            Self::LargeStanza | Self::DeepStanza | Self::LargeClaim => &["stanza_too_large"],
        }
    }

    /// How many there are at one time.
    pub(super) fn peers(self) -> usize {
        match self {
            Self::SilentBeforeTls
            | Self::SlowBeforeTls
            | Self::SilentBeforeLogin
            | Self::SlowBeforeLogin
            | Self::SlowStanza
            | Self::HalfOpen => 200,
            Self::Crowd => 150,
            Self::ZeroWindow => 30,
            Self::WrongPasswords | Self::FailedLogins => 20,
            _ => 10,
        }
    }

    /// True if they have accounts and log in.
    pub(super) fn logs_in(self) -> bool {
        !self.is_before_login()
    }

    fn is_before_login(self) -> bool {
        matches!(
            self,
            Self::SilentBeforeTls
                | Self::SlowBeforeTls
                | Self::SilentBeforeLogin
                | Self::SlowBeforeLogin
                | Self::Crowd
                | Self::WrongPasswords
                | Self::FailedLogins
        )
    }

    /// True if all come from one address; else a peer has one that few others have.
    pub(super) fn shares_an_address(self) -> bool {
        matches!(self, Self::Crowd | Self::FailedLogins)
    }

    /// How long one may live under [`SETTINGS`], on a machine that is not too busy.
    pub(super) fn lives(self) -> Duration {
        Duration::from_secs(match self {
            Self::HalfOpen => 22,
            Self::ZeroWindow => 18,
            _ if self.is_before_login() => 12,
            _ => 8,
        })
    }

    /// After its end each comes again, so much later.
    pub(super) fn pause(self) -> Duration {
        Duration::from_millis(match self {
            Self::FailedLogins => 200,
            _ => 3000,
        })
    }

    /// The most that the server should hold for one, under [`SETTINGS`] and the default limits: what follows from
    /// `xmpp_stanza_before_login_bytes_max` and a TLS handshake; from `xmpp_stanza_bytes_max`, once as bytes and once as
    /// elements and text; from `xmpp_outbox_bytes_max` and `xmpp_channel_queue_bytes_max`.
    pub(super) fn memory_bytes_max(self) -> u64 {
        const KB: u64 = 1024;
        match self {
            Self::ZeroWindow => 4 * KB * KB,
            Self::Openings | Self::Payloads => 512 * KB,
            _ if self.is_before_login() => 64 * KB,
            _ => 3 * 64 * KB,
        }
    }

    /// Accounts that all of them need.
    pub(super) fn accounts() -> usize {
        Self::ALL.into_iter().filter(|attack| attack.logs_in()).map(Self::peers).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_somebodys_and_every_attack_has_one() {
        for (reason, _) in REASONS {
            assert!(Attack::ALL.iter().any(|attack| attack.reasons().contains(&reason)), "{reason}");
        }
        for attack in Attack::ALL {
            assert!(!attack.reasons().is_empty());
            for reason in attack.reasons() {
                assert!(REASONS.iter().any(|(known, _)| known == reason), "{reason}");
            }
        }
    }
}
