//! Kubernetes quantities, such as `250m` or `1.5Gi`, as whole numbers. Rounded up: what is asked for must be there.

/// Thousandths.
pub fn thousandths(text: &str) -> Option<i64> {
    parse(text, 1000)
}

/// Whole units.
pub fn whole(text: &str) -> Option<i64> {
    parse(text, 1)
}

/// `text` times `scale`, rounded up; what is too large is the largest there is.
fn parse(text: &str, scale: i128) -> Option<i64> {
    let (negative, text) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (times, divided) = factor(suffix)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let mut digits = whole.bytes().chain(fraction.bytes());
    let mantissa =
        digits.try_fold(0i128, |sum, digit| sum.checked_mul(10)?.checked_add(i128::from(digit - b'0')));
    let above = mantissa.and_then(|mantissa| mantissa.checked_mul(times)?.checked_mul(scale));
    let below =
        10i128.checked_pow(u32::try_from(fraction.len()).ok()?).and_then(|it| it.checked_mul(divided));
    let Some((above, below)) = above.zip(below) else {
        return Some(if negative { i64::MIN } else { i64::MAX });
    };
    let (above, up) = if negative { (-above, 0) } else { (above, below - 1) };
    let result = above.saturating_add(up) / below;
    Some(i64::try_from(result).unwrap_or(if negative { i64::MIN } else { i64::MAX }))
}

/// What a suffix multiplies by, and divides by.
fn factor(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10i128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, milli, units) in [
            ("0", Some(0), Some(0)),
            ("1", Some(1000), Some(1)),
            ("250m", Some(250), Some(1)),
            ("1.5", Some(1500), Some(2)),
            (".5", Some(500), Some(1)),
            ("2.", Some(2000), Some(2)),
            ("100u", Some(1), Some(1)),
            ("1n", Some(1), Some(1)),
            ("1Ki", Some(1_024_000), Some(1024)),
            ("1.5Gi", Some(1_610_612_736_000), Some(1_610_612_736)),
            ("7097684Ki", Some(7_268_028_416_000), Some(7_268_028_416)),
            ("2k", Some(2_000_000), Some(2000)),
            ("1e3", Some(1_000_000), Some(1000)),
            ("12E-1", Some(1200), Some(2)),
            ("1E", Some(i64::MAX), Some(1_000_000_000_000_000_000)),
            ("9Ei", Some(i64::MAX), Some(i64::MAX)),
            ("-1", Some(-1000), Some(-1)),
            ("+3", Some(3000), Some(3)),
            ("", None, None),
            ("m", None, None),
            ("1.2.3", None, None),
            ("1 Gi", None, None),
            ("1gi", None, None),
            ("e3", None, None),
        ] {
            assert_eq!((thousandths(text), whole(text)), (milli, units), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = (thousandths(&text), whole(&text));
        }

        #[test]
        fn numbers_like_those_of_kubernetes_never_break(
            text in r"[+-]?[0-9]{0,40}(\.[0-9]{0,40})?(|n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?[0-9]{1,3})",
        ) {
            if let (Some(units), Some(milli)) = (whole(&text), thousandths(&text)) {
                prop_assert!(i128::from(units) * 1000 >= i128::from(milli) || milli.abs_diff(0) >= i64::MAX as u64, "{}", text);
            }
        }
    }
}
