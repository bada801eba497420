//! Kubernetes' quantities (`10Gi`, `500m`, `1e3`), to be compared.

/// In thousand-millionths, the finest that Kubernetes keeps; `None` for text that is no quantity.
/// What is too large for the type counts as the largest.
pub fn nanos(text: &str) -> Option<i128> {
    let (sign, text) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let (base, exponent) = unit(suffix)?;
    let mut total: i128 = 0;
    // Digit by digit, each times its own power: nothing is rounded before the end.
    let digits = whole.chars().chain(fraction.chars()).filter_map(|digit| digit.to_digit(10));
    for digit in digits {
        total = total.saturating_mul(10).saturating_add(i128::from(digit));
    }
    let mut ten = 9 - i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let mut two = 0;
    match base {
        2 => two = exponent,
        _ => ten = ten.saturating_add(exponent),
    }
    total = scale(total, 2, two);
    Some(sign * scale(total, 10, ten))
}

fn unit(suffix: &str) -> Option<(i128, i32)> {
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if let Some(place) = binary.iter().position(|unit| *unit == suffix) {
        return Some((2, 10 * (i32::try_from(place).ok()? + 1)));
    }
    let decimal = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
    if let Some(place) = decimal.iter().position(|unit| *unit == suffix) {
        return Some((10, 3 * (i32::try_from(place).ok()? - 3)));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    Some((10, exponent.parse().ok()?))
}

/// `total * base^exponent`, rounded up.
fn scale(mut total: i128, base: i128, exponent: i32) -> i128 {
    for _ in 0..exponent.unsigned_abs() {
        if total == 0 || total == i128::MAX {
            break;
        }
        total = if exponent > 0 {
            total.saturating_mul(base)
        } else {
            total / base + i128::from(total % base != 0)
        };
        if exponent < 0 && total == 1 {
            break;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_amounts_in_other_words_are_equal() {
        for (one, other) in [
            ("10240Mi", "10Gi"),
            ("1000m", "1"),
            ("1e3", "1k"),
            ("0.5Gi", "512Mi"),
            (".5", "500m"),
            ("1.", "1"),
            ("1E3", "1000"),
        ] {
            assert_eq!(nanos(one), nanos(other), "{one} {other}");
            assert!(nanos(one).is_some());
        }
        assert!(nanos("10Gi") > nanos("10G") && nanos("9Gi") < nanos("10Gi"));
        assert!(nanos("99999999999999999999999999999999999999999999Ei").is_some());
        for wrong in ["", "Gi", "1.2.3", "ten", "1ki", "1 Gi", "e3"] {
            assert_eq!(nanos(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[-+0-9.eEkKMGTPEinum]{0,24}") {
            let _ = nanos(&text);
        }

        #[test]
        fn the_order_is_that_of_the_numbers(a in 0u32.., b in 0u32..) {
            let mebi = |n: u32| nanos(&format!("{n}Mi"));
            prop_assert_eq!(mebi(a).cmp(&mebi(b)), a.cmp(&b));
        }
    }
}
