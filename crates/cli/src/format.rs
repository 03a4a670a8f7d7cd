//! Quantities as people read them.

use std::time::Duration;

use dirigent_core::control::FetchDescription;

/// A duration with two digits that matter: `340us`, `1.2ms`, `35ms`, `4.1s`, `3m20s`, `2h5m`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let short = |value: f64, unit: &str| {
        if value < 10.0 { format!("{value:.1}{unit}") } else { format!("{value:.0}{unit}") }
    };
    match time.as_secs() {
        0 if time.is_zero() => "0s".to_owned(),
        0 if time < Duration::from_millis(1) => format!("{}us", time.as_micros()),
        0 => short(seconds * 1e3, "ms"),
        whole @ 1..60 if time.subsec_millis() == 0 => format!("{whole}s"),
        1..60 => short(seconds, "s"),
        whole @ 60..3600 => two((whole / 60, "m"), (whole % 60, "s")),
        whole @ 3600..86_400 => two((whole / 3600, "h"), (whole / 60 % 60, "m")),
        whole => two((whole / 86_400, "d"), (whole / 3600 % 24, "h")),
    }
}

fn two((large, unit): (u64, &str), (small, smaller): (u64, &str)) -> String {
    if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{smaller}") }
}

/// Who has how much of an image: `w1 has 12MiB of 40MiB`.
pub(crate) fn fetched(fetching: &FetchDescription) -> String {
    let FetchDescription { worker, fetched, all, .. } = fetching;
    format!("{worker} has {} of {}", bytes(fetched.0), bytes(all.0))
}

/// A number of bytes: `12B`, `3.4KiB`, `120MiB`.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count;
    let mut unit = "B";
    let mut tenth = 0;
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024 {
            break;
        }
        tenth = value % 1024 * 10 / 1024;
        value /= 1024;
        unit = next;
    }
    if unit == "B" || value >= 10 {
        format!("{value}{unit}")
    } else {
        format!("{value}.{tenth}{unit}")
    }
}

/// A time of day, milliseconds since 1970, in UTC.
pub(crate) fn wall(ms: u64) -> String {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| format!("{ms}ms"), |time| format!("{time:.3}"))
}

/// The word whose spelling is nearest to `word`, if it is near enough to be meant.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().min(word.len()) / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, one row at a time.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = i;
        let mut last = i + 1;
        let mut next = vec![last];
        for (b, above) in right.iter().zip(row.iter().skip(1)) {
            last = (diagonal + usize::from(a != *b)).min(last + 1).min(above + 1);
            diagonal = *above;
            next.push(last);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_keep_two_digits() {
        let shown: Vec<_> = [340, 1_240, 35_400, 4_100_000, 200_000_000, 7_500_000_000]
            .map(|us| duration(Duration::from_micros(us)))
            .into();
        assert_eq!(shown, ["340us", "1.2ms", "35ms", "4.1s", "3m20s", "2h5m"]);
        let whole: Vec<_> = [0, 5, 60, 3600].map(|s| duration(Duration::from_secs(s))).into();
        assert_eq!(whole, ["0s", "5s", "1m", "1h"]);
    }

    #[test]
    fn sizes_are_short() {
        let shown: Vec<_> = [0, 1023, 1536, 10 << 20, 3 << 30].map(bytes).into();
        assert_eq!(shown, ["0B", "1023B", "1.5KiB", "10MiB", "3.0GiB"]);
    }

    #[test]
    fn the_time_of_day_is_utc() {
        assert_eq!(wall(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
    }

    #[test]
    fn typing_errors_are_recognised_and_strangers_are_not() {
        let known = ["command", "runtime", "isolation"];
        assert_eq!(nearest("comand", known), Some("command"));
        assert_eq!(nearest("islation", known), Some("isolation"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
