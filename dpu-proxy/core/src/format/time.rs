//! `%START_TIME(format)%`: strftime with Envoy's sub-second specifiers, in UTC.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A moment in the Gregorian calendar.
struct Civil {
    year: i64,
    month: u32,
    day: u32,
    hour: u64,
    minute: u64,
    second: u64,
    weekday: usize,
    year_day: i64,
    nanoseconds: u32,
    /// Seconds since 1970.
    unix: u64,
}

/// Appends the time. An empty format is ISO 8601 with milliseconds.
pub fn format(format: &str, at: SystemTime, output: &mut Vec<u8>) {
    let civil = Civil::of(at.duration_since(UNIX_EPOCH).unwrap_or_default());
    match format {
        "" => iso_8601(&civil, output),
        _ => strftime(format, &civil, output),
    }
}

/// `%Y-%m-%dT%H:%M:%E3SZ` by hand: nearly every line of an access log begins with it.
fn iso_8601(civil: &Civil, output: &mut Vec<u8>) {
    digits(civil.year.unsigned_abs(), 4, output);
    for (before, value) in [(b'-', u64::from(civil.month)), (b'-', u64::from(civil.day)), (b'T', civil.hour)] {
        output.push(before);
        digits(value, 2, output);
    }
    for (before, value) in [(b':', civil.minute), (b':', civil.second)] {
        output.push(before);
        digits(value, 2, output);
    }
    output.push(b'.');
    digits(u64::from(civil.nanoseconds / 1_000_000), 3, output);
    output.push(b'Z');
}

/// A number with zeros before it.
fn digits(value: u64, width: usize, output: &mut Vec<u8>) {
    let mut buffer = itoa::Buffer::new();
    let text = buffer.format(value).as_bytes();
    output.extend(std::iter::repeat_n(b'0', width.saturating_sub(text.len())));
    output.extend_from_slice(text);
}

impl Civil {
    /// By the civil-from-days algorithm: years that begin in March, eras of 400 years.
    fn of(since: Duration) -> Self {
        let unix = since.as_secs();
        let days = i64::try_from(unix / 86_400).expect("seconds divided by a day fit");
        let shifted = days + 719_468;
        let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let march_day = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * march_day + 2) / 153;
        let day = march_day - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        Self {
            year,
            month: u32::try_from(month).expect("1 to 12"),
            day: u32::try_from(day).expect("1 to 31"),
            hour: unix / 3600 % 24,
            minute: unix / 60 % 60,
            second: unix % 60,
            weekday: usize::try_from((days + 4).rem_euclid(7)).expect("0 to 6"),
            year_day: year_day(year, month, day),
            nanoseconds: since.subsec_nanos(),
            unix,
        }
    }
}

/// 1 to 366.
fn year_day(year: i64, month: i64, day: i64) -> i64 {
    const BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let index = usize::try_from(month - 1).expect("1 to 12");
    BEFORE[index] + day + i64::from(is_leap && month > 2)
}

fn strftime(format: &str, civil: &Civil, output: &mut Vec<u8>) {
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        output.extend_from_slice(&rest.as_bytes()[..at]);
        rest = specifier(&rest[at + 1..], civil, output);
    }
    output.extend_from_slice(rest.as_bytes());
}

/// Writes one specifier (after `%`); returns what follows it.
fn specifier<'a>(rest: &'a str, civil: &Civil, output: &mut Vec<u8>) -> &'a str {
    let sub_second = sub_second(rest, civil, output);
    if let Some(rest) = sub_second {
        return rest;
    }
    let mut chars = rest.chars();
    match chars.next() {
        Some(letter) if simple(letter, civil, output) => chars.as_str(),
        _ => {
            output.push(b'%');
            rest
        }
    }
}

/// `%E3S`, `%3f`, `%f`, `%Ez` and the like.
fn sub_second<'a>(rest: &'a str, civil: &Civil, output: &mut Vec<u8>) -> Option<&'a str> {
    if let Some(rest) = rest.strip_prefix("E*S") {
        write(output, format_args!("{:02}.{:09}", civil.second, civil.nanoseconds));
        return Some(rest);
    }
    if let Some(rest) = rest.strip_prefix("Ez") {
        write(output, format_args!("+00:00"));
        return Some(rest);
    }
    if let Some(rest) = rest.strip_prefix('f') {
        fraction(9, civil, output);
        return Some(rest);
    }
    let (is_extended, digits) = rest.strip_prefix('E').map_or((false, rest), |digits| (true, digits));
    let count = digits.chars().next()?.to_digit(10)? as usize;
    let tail = digits[1..].strip_prefix(if is_extended { 'S' } else { 'f' })?;
    if is_extended {
        write(output, format_args!("{:02}.", civil.second));
    }
    fraction(count.clamp(1, 9), civil, output);
    Some(tail)
}

fn fraction(digits: usize, civil: &Civil, output: &mut Vec<u8>) {
    let start = output.len();
    write(output, format_args!("{:09}", civil.nanoseconds));
    output.truncate(start + digits);
}

fn simple(letter: char, c: &Civil, output: &mut Vec<u8>) -> bool {
    let month = MONTHS[(c.month - 1) as usize];
    let twelve = (c.hour + 11) % 12 + 1;
    match letter {
        'Y' => write(output, format_args!("{}", c.year)),
        'C' => write(output, format_args!("{:02}", c.year / 100)),
        'y' => write(output, format_args!("{:02}", c.year % 100)),
        'm' => write(output, format_args!("{:02}", c.month)),
        'd' => write(output, format_args!("{:02}", c.day)),
        'e' => write(output, format_args!("{:2}", c.day)),
        'j' => write(output, format_args!("{:03}", c.year_day)),
        'H' => write(output, format_args!("{:02}", c.hour)),
        'I' => write(output, format_args!("{twelve:02}")),
        'M' => write(output, format_args!("{:02}", c.minute)),
        'S' => write(output, format_args!("{:02}", c.second)),
        'p' => write(output, format_args!("{}", if c.hour < 12 { "AM" } else { "PM" })),
        'b' | 'h' => write(output, format_args!("{}", &month[..3])),
        'B' => write(output, format_args!("{month}")),
        'a' => write(output, format_args!("{}", &DAYS[c.weekday][..3])),
        'A' => write(output, format_args!("{}", DAYS[c.weekday])),
        'u' => write(output, format_args!("{}", (c.weekday + 6) % 7 + 1)),
        'w' => write(output, format_args!("{}", c.weekday)),
        's' => write(output, format_args!("{}", c.unix)),
        'z' => write(output, format_args!("+0000")),
        'Z' => write(output, format_args!("UTC")),
        'n' => output.push(b'\n'),
        't' => output.push(b'\t'),
        '%' => output.push(b'%'),
        'F' => strftime("%Y-%m-%d", c, output),
        'D' | 'x' => strftime("%m/%d/%y", c, output),
        'T' | 'X' => strftime("%H:%M:%S", c, output),
        'R' => strftime("%H:%M", c, output),
        'r' => strftime("%I:%M:%S %p", c, output),
        'c' => strftime("%a %b %e %H:%M:%S %Y", c, output),
        _ => return false,
    }
    true
}

fn write(output: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    output.write_fmt(text).expect("a vector takes every byte");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, nanoseconds: u32, format_text: &str) -> String {
        let mut output = Vec::new();
        format(format_text, UNIX_EPOCH + Duration::new(seconds, nanoseconds), &mut output);
        String::from_utf8(output).expect("text")
    }

    #[test]
    fn the_default_is_iso_8601_with_milliseconds() {
        assert_eq!(at(1_522_280_158, 123_456_789, ""), "2018-03-28T23:35:58.123Z");
        assert_eq!(at(0, 0, ""), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(1_709_164_800, 0, ""), "2024-02-29T00:00:00.000Z");
    }

    #[test]
    fn strftime_specifiers_print_as_in_c() {
        let second = 1_522_280_158;
        assert_eq!(at(second, 0, "%Y/%m/%dT%H:%M:%S%z %s"), "2018/03/28T23:35:58+0000 1522280158");
        assert_eq!(at(second, 0, "%a %b %e %j %p %I %%"), "Wed Mar 28 087 PM 11 %");
        assert_eq!(at(second, 0, "%F %T %D %q"), "2018-03-28 23:35:58 03/28/18 %q");
    }

    #[test]
    fn fractions_have_as_many_digits_as_asked() {
        assert_eq!(at(1, 123_456_789, "%s.%3f %6f %9f %f %E4S"), "1.123 123456 123456789 123456789 01.1234");
    }
}
