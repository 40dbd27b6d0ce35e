//! The configuration of rate limits: base rates, windows of the day that replace them, and NIC yield.
//!
//! Invariant: the scheduled rates depend on the settings and the time only.

use serde::{Deserialize, Serialize};
use shoal_api::limits::Rates;
use shoal_service::config::ConfigError;
use shoal_service::units::Rate;

/// Lowest valid rate in bytes per second. Below it, keep-alive detection would close links.
pub const RATE_MIN: u64 = 8_000;
/// Most windows in one configuration.
const WINDOWS_MAX: usize = 64;
const DAY_MINUTES: u64 = 24 * 60;

/// A rate below [`RATE_MIN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rate {rate} is less than {min}, the lowest that links can use", min = Rate(RATE_MIN))]
pub struct RateTooLow {
    rate: Rate,
}

/// Returns `base`, replaced by the rates that `other` has.
pub fn override_rates(base: &Rates, other: &Rates) -> Rates {
    Rates {
        uplink_out: other.uplink_out.or(base.uplink_out),
        uplink_in: other.uplink_in.or(base.uplink_in),
        rack_out: other.rack_out.or(base.rack_out),
        rack_in: other.rack_in.or(base.rack_in),
    }
}

/// Checks that links can work with all rates.
///
/// # Errors
/// Returns the first rate that is too low.
pub fn check_rates(rates: &Rates) -> Result<(), RateTooLow> {
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
    /// In the order of the days since 1970-01-01, which was a Thursday.
    const ALL: [Self; 7] = [Self::Thu, Self::Fri, Self::Sat, Self::Sun, Self::Mon, Self::Tue, Self::Wed];
}

/// Rates for a part of the day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Start, `HH:MM`.
    pub from: String,
    /// End, `HH:MM`. An end before `from` is on the next day.
    pub to: String,
    /// The days on which the window starts. Default: every day.
    #[serde(default)]
    pub days: Vec<Day>,
    /// Replaces the configured rate. The same holds for the other rates.
    pub uplink_out: Option<Rate>,
    #[allow(missing_docs, reason = "see `uplink_out`")]
    pub uplink_in: Option<Rate>,
    #[allow(missing_docs, reason = "see `uplink_out`")]
    pub rack_out: Option<Rate>,
    #[allow(missing_docs, reason = "see `uplink_out`")]
    pub rack_in: Option<Rate>,
}

impl Window {
    fn rates(&self) -> Rates {
        let Self { uplink_out, uplink_in, rack_out, rack_in, .. } = *self;
        Rates { uplink_out, uplink_in, rack_out, rack_in }
    }

    /// Whether the window is open. `minute` counts from the start of 1970 in the configured time zone.
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

/// Parses `HH:MM` as minutes.
fn time_of_day(text: &str) -> Option<u64> {
    let (hours, minutes) = text.split_once(':').filter(|(hours, minutes)| hours.len() == 2 && minutes.len() == 2)?;
    let (hours, minutes): (u64, u64) = (hours.parse().ok()?, minutes.parse().ok()?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

/// Parses `+HH:MM` or `-HH:MM` as minutes.
fn offset(text: &str) -> Option<i64> {
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+')?),
    };
    Some(sign * i64::try_from(time_of_day(rest)?).ok()?)
}

/// How bulk traffic yields to other traffic on the host's network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct YieldSettings {
    /// The name of the network interface.
    pub interface: String,
    /// The card's rate in each direction.
    pub nic_rate: Rate,
    /// Percent of the card's rate that all traffic together may use. Default 80.
    #[serde(default = "default_percent")]
    pub nic_percent: u8,
    /// The rate that bulk traffic always gets. Default 10 Mbit/s.
    #[serde(default = "default_bulk_min")]
    pub bulk_min: Rate,
}

fn default_percent() -> u8 {
    80
}

fn default_bulk_min() -> Rate {
    Rate(1_250_000)
}

/// The configured rate limits of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimitSettings {
    /// Sent to other racks and to seeders. The default of all rates is no limit.
    pub uplink_out: Option<Rate>,
    /// Received from other racks and seeders.
    pub uplink_in: Option<Rate>,
    /// Sent to rack peers.
    pub rack_out: Option<Rate>,
    /// Received from rack peers.
    pub rack_in: Option<Rate>,
    /// Offset of the windows' times from UTC, for example `+08:00`. Default: none.
    pub utc_offset: Option<String>,
    /// Rates for parts of the day. Of several open windows, the last one with a rate applies.
    pub window: Vec<Window>,
    /// NIC yield. Default: off.
    #[serde(rename = "yield")]
    pub yielding: Option<YieldSettings>,
}

impl RateLimitSettings {
    /// Returns the rates without windows.
    pub fn base(&self) -> Rates {
        let Self { uplink_out, uplink_in, rack_out, rack_in, .. } = *self;
        Rates { uplink_out, uplink_in, rack_out, rack_in }
    }

    /// Returns the rates at a Unix time in seconds, and the place of the last open window.
    pub fn at(&self, unix: u64) -> (Rates, Option<usize>) {
        let shift = self.utc_offset.as_deref().and_then(offset).unwrap_or(0) * 60;
        let minute = unix.saturating_add_signed(shift) / 60;
        let open = self.window.iter().enumerate().filter(|(_, window)| window.is_open(minute));
        open.fold((self.base(), None), |(rates, _), (place, window)| {
            (override_rates(&rates, &window.rates()), Some(place))
        })
    }

    /// Checks the bounds that types cannot express.
    ///
    /// # Errors
    /// Names the first key with an invalid value.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |ok: bool, key: &str, why: &str| if ok { Ok(()) } else { Err(ConfigError::invalid(key, why)) };
        check_rates(&self.base()).map_err(|why| ConfigError::invalid("node.limits", why))?;
        check(self.window.len() <= WINDOWS_MAX, "node.limits.window", "use at most 64 windows")?;
        for window in &self.window {
            let times = [&window.from, &window.to].into_iter().all(|time| time_of_day(time).is_some());
            check(times, "node.limits.window", "use times of day such as `08:30` for `from` and `to`")?;
            check(window.from != window.to, "node.limits.window", "use different times for `from` and `to`")?;
            check_rates(&window.rates()).map_err(|why| ConfigError::invalid("node.limits.window", why))?;
        }
        let zone = self.utc_offset.as_deref().is_none_or(|text| offset(text).is_some());
        check(zone, "node.limits.utc_offset", "use an offset such as `+08:00`")?;
        let Some(yielding) = &self.yielding else { return Ok(()) };
        check((1..=100).contains(&yielding.nic_percent), "node.limits.yield.nic_percent", "use 1 to 100")?;
        check(yielding.bulk_min.0 >= RATE_MIN, "node.limits.yield.bulk_min", "use at least 64 kbit/s")?;
        let valid = yielding.nic_rate.0 < u64::MAX && yielding.nic_rate >= yielding.bulk_min;
        check(valid, "node.limits.yield.nic_rate", "use the card's real rate, above `bulk_min`")?;
        let name = &yielding.interface;
        let named = !name.is_empty() && name.len() < 16 && !name.contains('/') && !name.starts_with('.');
        check(named, "node.limits.yield.interface", "use the name of a network interface")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;
    /// A Thursday four weeks after the start of 1970.
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
    fn a_window_includes_its_start_and_excludes_its_end() {
        let settings = settings(vec![window("08:00", "18:30", &[], 9000)], None);
        for (hour, rate) in [(0.0, 1_000_000), (8.0, 9000), (18.4, 9000), (18.5, 1_000_000), (23.9, 1_000_000)] {
            assert_eq!(out(&settings, THURSDAY + (hour * HOUR as f64) as u64), rate, "{hour}");
        }
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_of_its_start() {
        let settings = settings(vec![window("22:00", "06:00", &[Day::Thu], 9000)], None);
        let at = |day: u64, hour: u64| out(&settings, THURSDAY + day * 24 * HOUR + hour * HOUR);
        assert_eq!(
            (at(0, 5), at(0, 21), at(0, 22), at(1, 5), at(1, 6), at(1, 23)),
            (1_000_000, 1_000_000, 9000, 9000, 1_000_000, 1_000_000)
        );
    }

    #[test]
    fn the_offset_moves_the_windows() {
        let settings = settings(vec![window("08:00", "09:00", &[Day::Thu], 9000)], Some("+08:00"));
        assert_eq!(out(&settings, THURSDAY + HOUR / 2), 9000);
        assert_eq!(out(&settings, THURSDAY + 8 * HOUR), 1_000_000);
        let west = RateLimitSettings { utc_offset: Some("-05:30".into()), ..settings };
        assert_eq!(out(&west, THURSDAY + 13 * HOUR + HOUR / 2), 9000);
    }

    #[test]
    fn the_last_open_window_wins_and_rates_set_at_run_time_win_over_all() {
        let windows = vec![window("00:00", "12:00", &[], 9000), window("06:00", "18:00", &[], 10_000)];
        let settings = settings(windows, None);
        let (rates, window) = settings.at(THURSDAY + 7 * HOUR);
        assert_eq!((rates.uplink_out, window), (Some(Rate(10_000)), Some(1)));
        let set = Rates { uplink_out: Some(Rate::UNLIMITED), rack_in: Some(Rate(11_000)), ..Rates::default() };
        let all = override_rates(&rates, &set);
        assert_eq!((all.uplink_out, all.rack_in, all.rack_out), (Some(Rate::UNLIMITED), Some(Rate(11_000)), None));
    }

    #[test]
    fn invalid_settings_are_refused() {
        let base = RateLimitSettings::default();
        let yields = |nic_percent, bulk_min, interface: &str| {
            let (nic_rate, bulk_min) = (Rate(125_000_000), Rate(bulk_min));
            let yielding = Some(YieldSettings { interface: interface.into(), nic_rate, nic_percent, bulk_min });
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
