//! RateLimits as configured: rates, windows of the day that replace them, and what the time of day makes of both.
//!
//! Invariant: what is in force is a function of the settings and the time alone.

use serde::{Deserialize, Serialize};
use shoal_api::limits::Rates;
use shoal_service::config::ConfigError;
use shoal_service::units::Rate;

/// Slowest rate that may be set, bytes/s: links below it look dead.
pub const RATE_MIN: u64 = 8_000;
/// Windows in one configuration.
const WINDOWS_MAX: usize = 64;
const DAY_MINUTES: u64 = 24 * 60;

/// A rate below the slowest that links can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the rate {rate} is too low; give at least {min}", min = Rate(RATE_MIN))]
pub struct RateTooLow {
    rate: Rate,
}

/// Returns `base` with the rates of `other` in their places.
pub(super) fn overridden(base: &Rates, other: &Rates) -> Rates {
    Rates {
        uplink_out: other.uplink_out.or(base.uplink_out),
        uplink_in: other.uplink_in.or(base.uplink_in),
        rack_out: other.rack_out.or(base.rack_out),
        rack_in: other.rack_in.or(base.rack_in),
    }
}

/// Checks that no rate is below the slowest that links can use.
///
/// # Errors
/// Returns the first rate that is too low.
pub(super) fn check_rates(rates: &Rates) -> Result<(), RateTooLow> {
    let all = [rates.uplink_out, rates.uplink_in, rates.rack_out, rates.rack_in];
    match all.into_iter().flatten().find(|rate| rate.0 < RATE_MIN) {
        Some(rate) => Err(RateTooLow { rate }),
        None => Ok(()),
    }
}

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the days")]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl Day {
    /// The first day of 1970 was a Thursday.
    const ALL: [Self; 7] = [Self::Thu, Self::Fri, Self::Sat, Self::Sun, Self::Mon, Self::Tue, Self::Wed];
}

/// Rates for a part of the day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// When it begins, `HH:MM`.
    pub from: String,
    /// When it ends, `HH:MM`; before `from` means on the next day.
    pub to: String,
    /// The days it begins on. Default: every day.
    #[serde(default)]
    pub days: Vec<Day>,
    /// In place of the configured rate.
    pub uplink_out: Option<Rate>,
    /// In place of the configured rate.
    pub uplink_in: Option<Rate>,
    /// In place of the configured rate.
    pub rack_out: Option<Rate>,
    /// In place of the configured rate.
    pub rack_in: Option<Rate>,
}

impl Window {
    fn rates(&self) -> Rates {
        let Self { uplink_out, uplink_in, rack_out, rack_in, .. } = *self;
        Rates { uplink_out, uplink_in, rack_out, rack_in }
    }

    /// Whether it is open, minutes after the first moment of 1970 in its zone.
    fn is_open(&self, minute: u64) -> bool {
        let (Some(from), Some(to)) = (time_of_day(&self.from), time_of_day(&self.to)) else { return false };
        let (day, now) = (minute / DAY_MINUTES, minute % DAY_MINUTES);
        let begins_on = |day: u64| self.days.is_empty() || self.days.contains(&Day::ALL[(day % 7) as usize]);
        if from <= to {
            return begins_on(day) && (from..to).contains(&now);
        }
        (now >= from && begins_on(day)) || (now < to && day > 0 && begins_on(day - 1))
    }
}

/// `HH:MM` as minutes.
fn time_of_day(text: &str) -> Option<u64> {
    let (hours, minutes) = text.split_once(':').filter(|(hours, minutes)| hours.len() == 2 && minutes.len() == 2)?;
    let (hours, minutes): (u64, u64) = (hours.parse().ok()?, minutes.parse().ok()?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

/// Minutes of `+HH:MM` or `-HH:MM`.
fn offset(text: &str) -> Option<i64> {
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+')?),
    };
    Some(sign * i64::try_from(time_of_day(rest)?).ok()?)
}

/// How bulk gives way to whatever else the host's card carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct YieldSettings {
    /// The card, as the system calls it.
    pub interface: String,
    /// The card's rate, each way.
    pub nic: Rate,
    /// Percent of it that may be in use, ours and others' together. Default 80.
    #[serde(default = "default_share")]
    pub share_percent: u8,
    /// Bulk never gets less than this. Default 10 Mbit/s.
    #[serde(default = "default_floor")]
    pub floor: Rate,
}

fn default_share() -> u8 {
    80
}

fn default_floor() -> Rate {
    Rate(1_250_000)
}

/// A node's limits as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimitSettings {
    /// Sent to other racks and seeders. Default: no limit; the same for the others.
    pub uplink_out: Option<Rate>,
    /// Received from other racks and seeders.
    pub uplink_in: Option<Rate>,
    /// Sent to rack peers.
    pub rack_out: Option<Rate>,
    /// Received from rack peers.
    pub rack_in: Option<Rate>,
    /// Where the day begins for windows: `+08:00`. Default: UTC.
    pub utc_offset: Option<String>,
    /// Rates for parts of the day; of several open ones, each rate is the last one's that has it.
    pub window: Vec<Window>,
    /// Bulk gives way to whatever else the card carries. Default: no.
    #[serde(rename = "yield")]
    pub yielding: Option<YieldSettings>,
}

impl RateLimitSettings {
    /// Without windows.
    pub fn base(&self) -> Rates {
        let Self { uplink_out, uplink_in, rack_out, rack_in, .. } = *self;
        Rates { uplink_out, uplink_in, rack_out, rack_in }
    }

    /// Rates at a time, Unix seconds, and the last open window.
    pub fn at(&self, unix: u64) -> (Rates, Option<usize>) {
        let shift = self.utc_offset.as_deref().and_then(offset).unwrap_or(0) * 60;
        let minute = unix.saturating_add_signed(shift) / 60;
        let open = self.window.iter().enumerate().filter(|(_, window)| window.is_open(minute));
        open.fold((self.base(), None), |(rates, _), (place, window)| (overridden(&rates, &window.rates()), Some(place)))
    }

    /// Checks what the types cannot.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |ok: bool, key: &str, why: &str| if ok { Ok(()) } else { Err(ConfigError::invalid(key, why)) };
        check_rates(&self.base()).map_err(|why| ConfigError::invalid("node.limits", why))?;
        check(self.window.len() <= WINDOWS_MAX, "node.limits.window", "more than 64")?;
        for window in &self.window {
            let times = [&window.from, &window.to].into_iter().all(|time| time_of_day(time).is_some());
            check(times, "node.limits.window", "`from` and `to` must be times of day such as `08:30`")?;
            check(window.from != window.to, "node.limits.window", "`from` and `to` are the same")?;
            check_rates(&window.rates()).map_err(|why| ConfigError::invalid("node.limits.window", why))?;
        }
        let zone = self.utc_offset.as_deref().is_none_or(|text| offset(text).is_some());
        check(zone, "node.limits.utc_offset", "must be an offset such as `+08:00`")?;
        let Some(yielding) = &self.yielding else { return Ok(()) };
        check((1..=100).contains(&yielding.share_percent), "node.limits.yield.share_percent", "between 1 and 100")?;
        check(yielding.floor.0 >= RATE_MIN, "node.limits.yield.floor", "less than 64 kbit/s")?;
        check(yielding.nic.0 < u64::MAX && yielding.nic >= yielding.floor, "node.limits.yield.nic", "below `floor`")?;
        let name = &yielding.interface;
        let named = !name.is_empty() && name.len() < 16 && !name.contains('/') && !name.starts_with('.');
        check(named, "node.limits.yield.interface", "is no interface's name")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;
    /// A Thursday, the first day of 1970, a few weeks later.
    const THURSDAY: u64 = 28 * 86_400;

    fn window(from: &str, to: &str, days: &[Day], out: u64) -> Window {
        let (from, to, days) = (from.into(), to.into(), days.to_vec());
        let (uplink_out, uplink_in, rack_out, rack_in) = (Some(Rate(out)), None, None, None);
        Window { from, to, days, uplink_out, uplink_in, rack_out, rack_in }
    }

    fn settings(window: Vec<Window>, utc_offset: Option<&str>) -> RateLimitSettings {
        let utc_offset = utc_offset.map(str::to_string);
        let settings =
            RateLimitSettings { uplink_out: Some(Rate(1_000_000)), window, utc_offset, ..RateLimitSettings::default() };
        settings.validate().unwrap();
        settings
    }

    fn out(settings: &RateLimitSettings, at: u64) -> u64 {
        settings.at(at).0.uplink_out.unwrap().0
    }

    #[test]
    fn a_window_counts_from_its_first_minute_to_before_its_last() {
        let settings = settings(vec![window("08:00", "18:30", &[], 9000)], None);
        for (hour, rate) in [(0.0, 1_000_000), (8.0, 9000), (18.4, 9000), (18.5, 1_000_000), (23.9, 1_000_000)] {
            assert_eq!(out(&settings, THURSDAY + (hour * HOUR as f64) as u64), rate, "{hour}");
        }
    }

    #[test]
    fn over_midnight_a_window_belongs_to_the_day_it_begins_on() {
        let settings = settings(vec![window("22:00", "06:00", &[Day::Thu], 9000)], None);
        let at = |day: u64, hour: u64| out(&settings, THURSDAY + day * 24 * HOUR + hour * HOUR);
        assert_eq!(
            (at(0, 5), at(0, 21), at(0, 22), at(1, 5), at(1, 6), at(1, 23)),
            (1_000_000, 1_000_000, 9000, 9000, 1_000_000, 1_000_000)
        );
    }

    #[test]
    fn the_zone_moves_the_day() {
        let settings = settings(vec![window("08:00", "09:00", &[Day::Thu], 9000)], Some("+08:00"));
        assert_eq!(out(&settings, THURSDAY + HOUR / 2), 9000);
        assert_eq!(out(&settings, THURSDAY + 8 * HOUR), 1_000_000);
        let west = RateLimitSettings { utc_offset: Some("-05:30".into()), ..settings };
        assert_eq!(out(&west, THURSDAY + 13 * HOUR + HOUR / 2), 9000);
    }

    #[test]
    fn the_last_of_several_wins_and_what_was_set_wins_over_all() {
        let windows = vec![window("00:00", "12:00", &[], 9000), window("06:00", "18:00", &[], 10_000)];
        let settings = settings(windows, None);
        let (rates, window) = settings.at(THURSDAY + 7 * HOUR);
        assert_eq!((rates.uplink_out, window), (Some(Rate(10_000)), Some(1)));
        let set = Rates { uplink_out: Some(Rate::UNLIMITED), rack_in: Some(Rate(11_000)), ..Rates::default() };
        let all = overridden(&rates, &set);
        assert_eq!((all.uplink_out, all.rack_in, all.rack_out), (Some(Rate::UNLIMITED), Some(Rate(11_000)), None));
    }

    #[test]
    fn nonsense_is_refused() {
        let base = RateLimitSettings::default();
        let yields = |share_percent, floor, interface: &str| {
            let nic = Rate(125_000_000);
            let yielding = Some(YieldSettings { interface: interface.into(), nic, share_percent, floor: Rate(floor) });
            RateLimitSettings { yielding, ..base.clone() }
        };
        yields(80, 1_000_000, "eth0").validate().unwrap();
        for bad in [
            RateLimitSettings { uplink_in: Some(Rate(100)), ..base.clone() },
            RateLimitSettings { window: vec![window("8:00", "09:00", &[], 9000)], ..base.clone() },
            RateLimitSettings { window: vec![window("24:00", "09:00", &[], 9000)], ..base.clone() },
            RateLimitSettings { window: vec![window("09:00", "09:00", &[], 9000)], ..base.clone() },
            RateLimitSettings { window: vec![window("09:00", "10:00", &[], 1)], ..base.clone() },
            RateLimitSettings { utc_offset: Some("8".into()), ..base.clone() },
            yields(0, 1_000_000, "eth0"),
            yields(80, 10, "eth0"),
            yields(80, 1 << 40, "eth0"),
            yields(80, 1_000_000, "../eth0"),
        ] {
            assert!(bad.validate().is_err(), "{bad:?}");
        }
    }
}
