//! When a message is sent: now, then, at a local time, again and again, all at once or spread.

use idl::contract::bus as wire;
use idl::error::Failure;
use jiff::tz::TimeZone;

use crate::params::{Params, bad_value, missing, shown};
use crate::vocabulary::{
    AHEAD_MS_MAX, LOCAL_TIME, REPEAT, REPEAT_UNTIL, SPREAD_MS, TIME_TO_SEND, TIME_ZONE, parse_local_time,
};

/// When a message is to be sent. At most one of time, local time and repetition is there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Timing {
    pub(crate) send_at_ms: Option<i64>,
    pub(crate) local_time: Option<String>,
    pub(crate) repeat: Option<wire::Repeat>,
    pub(crate) spread_ms: Option<i64>,
}

impl Timing {
    /// Reads it. A time that has come means now.
    pub(crate) fn read(params: &Params<'_>, now_ms: u64) -> Result<Self, Failure> {
        let timing = Self {
            send_at_ms: send_at(params, now_ms)?,
            local_time: LOCAL_TIME.owned(params)?,
            repeat: repeat(params, now_ms)?,
            spread_ms: SPREAD_MS.integer(params)?.filter(|ms| *ms > 0),
        };
        let given = [
            (TIME_TO_SEND.name, timing.send_at_ms.is_some()),
            (LOCAL_TIME.name, timing.local_time.is_some()),
            (REPEAT.name, timing.repeat.is_some()),
        ];
        let mut given = given.iter().filter(|(_, given)| *given).map(|(name, _)| name);
        if let (Some(one), Some(another)) = (given.next(), given.next()) {
            return Err(bad_value(one, &format!("given beside {another}"), "one of them"));
        }
        Ok(timing)
    }
}

fn send_at(params: &Params<'_>, now_ms: u64) -> Result<Option<i64>, Failure> {
    TIME_TO_SEND.integer(params)?.map_or(Ok(None), |ms| ahead(ms, now_ms))
}

/// A value of `time_to_send`, where it lies ahead; at most 7 days.
pub(crate) fn ahead(ms: i64, now_ms: u64) -> Result<Option<i64>, Failure> {
    let Some(ahead_ms) = u64::try_from(ms).ok().and_then(|ms| ms.checked_sub(now_ms)).filter(|ahead| *ahead > 0) else {
        return Ok(None);
    };
    if ahead_ms > AHEAD_MS_MAX {
        return Err(TIME_TO_SEND.wrong_because(&format!("{ms}, which is {ahead_ms} ms ahead")));
    }
    Ok(Some(ms))
}

/// The parameters `repeat`, `time_zone` and `repeat_until`.
fn repeat(params: &Params<'_>, now_ms: u64) -> Result<Option<wire::Repeat>, Failure> {
    let (cron, time_zone) = (REPEAT.text(params)?, TIME_ZONE.text(params)?);
    let until = REPEAT_UNTIL.text(params)?;
    let Some(cron) = cron else {
        let alone = [(TIME_ZONE.name, time_zone), (REPEAT_UNTIL.name, until)];
        return match alone.iter().find(|(_, given)| given.is_some()) {
            Some((name, _)) => Err(missing(REPEAT.name, &format!("five cron fields, because {name} is given"))),
            None => Ok(None),
        };
    };
    let time_zone = time_zone.ok_or_else(|| TIME_ZONE.missing())?;
    let until_ms = until.map(|until| read_until(until, time_zone, now_ms)).transpose()?;
    Ok(Some(wire::Repeat { cron: cron.to_owned(), time_zone: time_zone.to_owned(), until_ms }))
}

fn read_until(text: &str, time_zone: &str, now_ms: u64) -> Result<i64, Failure> {
    let local = || {
        let time = parse_local_time(text)?;
        // A time that the clock skips or shows twice is taken as RFC 5545 §3.3.5 does.
        let time = TimeZone::get(time_zone).ok()?.to_ambiguous_timestamp(time).compatible().ok()?;
        Some(time.as_millisecond())
    };
    let ms = text.parse().ok().or_else(local).ok_or_else(|| REPEAT_UNTIL.wrong(text))?;
    if u64::try_from(ms).is_ok_and(|ms| ms > now_ms) {
        return Ok(ms);
    }
    Err(REPEAT_UNTIL.wrong_because(&format!("{}, which has passed", shown(text))))
}

#[cfg(test)]
mod tests {
    use idl::error::Code;

    use super::*;
    use crate::params::BodyFormat;

    const NOW: u64 = 1_700_000_000_000;

    fn read(form: &str) -> Result<Timing, (Code, String)> {
        let params = Params::read(None, &BodyFormat::Form, form.as_bytes()).expect("a form");
        Timing::read(&params, NOW).map_err(|failure| (failure.code, failure.description))
    }

    #[test]
    fn a_time_that_has_come_means_now() {
        for form in ["", "time_to_send=0", "time_to_send=-1", "time_to_send=1700000000000", "spread_ms=0"] {
            assert_eq!(read(form), Ok(Timing::default()), "{form}");
        }
        let later = read("time_to_send=1700000000001").expect("a time");
        assert_eq!(later.send_at_ms, Some(1_700_000_000_001));
    }

    #[test]
    fn a_schedule_reaches_seven_days_ahead() {
        let week = NOW + 7 * 24 * 3600 * 1000;
        assert!(read(&format!("time_to_send={week}")).is_ok());
        let (code, words) = read(&format!("time_to_send={}", week + 1)).expect_err("too far");
        assert_eq!(code, Code::BadValue);
        assert!(
            words.contains("604800001 ms ahead: expected milliseconds since 1970, at most 7 days ahead"),
            "{words}"
        );
    }

    #[test]
    fn a_local_time_is_one_that_a_clock_can_show() {
        for good in ["2026-12-01T09:00", "2026-12-01T09:00:30", "2028-02-29T23:59"] {
            assert_eq!(read(&format!("local_time={good}")).expect("a time").local_time.as_deref(), Some(good));
        }
        for bad in [
            "2026-12-01",
            "2026-12-01 09:00",
            "2026-12-01T09:00Z",
            "2026-12-01T24:00",
            "2026-02-29T09:00",
            "2026-12-01T9:00",
            "tomorrow",
            "2026-12-01T09:00:30.5",
            "2026-12-01T09:00:3",
        ] {
            let (code, words) = read(&format!("local_time={bad}")).expect_err(bad);
            assert_eq!(code, Code::BadValue);
            assert!(words.contains("a time such as 2026-12-01T09:00"), "{words}");
        }
    }

    #[test]
    fn a_repetition_has_five_fields_a_time_zone_and_perhaps_an_end() {
        let shanghai = "repeat=0+9+*+*+1-5&time_zone=Asia/Shanghai";
        let repeat = |form: &str| read(form).map(|timing| timing.repeat.expect("a repetition"));
        let plain = repeat(shanghai).expect("right");
        assert_eq!(
            (plain.cron.as_str(), plain.time_zone.as_str(), plain.until_ms),
            ("0 9 * * 1-5", "Asia/Shanghai", None)
        );
        let until = |end: &str| repeat(&format!("{shanghai}&repeat_until={end}")).map(|repeat| repeat.until_ms);
        assert_eq!(until("1700000000001"), Ok(Some(1_700_000_000_001)));
        assert_eq!(until("2026-12-01T09:00"), Ok(Some(1_796_086_800_000)), "01:00 UTC");
        for (form, code, named) in [
            (format!("{shanghai}&repeat_until=1700000000000"), Code::BadValue, "which has passed"),
            (format!("{shanghai}&repeat_until=soon"), Code::BadValue, "repeat_until"),
            ("repeat=0+9+*+*+1-5".into(), Code::Missing, "time_zone"),
            ("repeat=0+9+*+*&time_zone=UTC".into(), Code::BadValue, "five cron fields"),
            ("repeat=0+9+*+*+*+*&time_zone=UTC".into(), Code::BadValue, "five cron fields"),
            ("repeat=0+9+*+*+*&time_zone=Mars/Olympus".into(), Code::BadValue, "time_zone"),
            ("repeat=0+9+*+*+*&time_zone=../UTC".into(), Code::BadValue, "time_zone"),
            ("time_zone=UTC".into(), Code::Missing, "because time_zone is given"),
            ("repeat_until=1".into(), Code::Missing, "because repeat_until is given"),
        ] {
            let (found, words) = read(&form).expect_err(&form);
            assert_eq!(found, code, "{form}: {words}");
            assert!(words.contains(named), "{form}: {words}");
        }
    }

    #[test]
    fn one_message_has_one_time() {
        let (at, local, repeat) =
            ("time_to_send=1700000000001", "local_time=2026-12-01T09:00", "repeat=0+9+*+*+*&time_zone=UTC");
        for (one, another) in [(at, local), (at, repeat), (local, repeat)] {
            let (code, words) = read(&format!("{one}&{another}")).expect_err("two times");
            assert_eq!(code, Code::BadValue);
            assert!(words.ends_with("expected one of them"), "{words}");
        }
        assert!(read(&format!("time_to_send=0&{local}")).is_ok(), "Mi Push's own SDK always sends a 0");
    }
}
