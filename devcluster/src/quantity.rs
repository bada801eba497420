//! Resource quantities (`500m`, `1.5Gi`, `2e3`) as numbers.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Amounts by resource name, in thousandths of the unit.
pub type Amounts = BTreeMap<String, i128>;

/// The value in thousandths, rounded up; `None` if it is not a quantity
/// (k8s.io/apimachinery `resource.Quantity`).
pub fn thousandths(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (numerator, denominator): (i128, i128) = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (10_i128.pow(6), 1),
        "G" => (10_i128.pow(9), 1),
        "T" => (10_i128.pow(12), 1),
        "P" => (10_i128.pow(15), 1),
        "E" => (10_i128.pow(18), 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            if exponent.unsigned_abs() > 18 {
                return None;
            }
            let power = 10_i128.pow(exponent.unsigned_abs());
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    };
    let (negative, digits) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let is_digits = |text: &str| text.len() <= 18 && text.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction: i128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let scaled = whole.checked_mul(scale)?.checked_add(fraction)?;
    let value = scaled.checked_mul(numerator)?.checked_mul(1000)?;
    let divisor = scale.checked_mul(denominator)?;
    let rounded = value / divisor + i128::from(value % divisor != 0);
    Some(if negative { -rounded } else { rounded })
}

/// All amounts of a list; what is no quantity counts as nothing.
pub fn amounts(quantities: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    let all = quantities.into_iter().flatten();
    all.filter_map(|(name, quantity)| Some((name.clone(), thousandths(&quantity.0)?))).collect()
}

pub fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *to.entry(name.clone()).or_default() += amount;
    }
}

/// The larger of both, for each resource.
pub fn at_least(to: &mut Amounts, least: &Amounts) {
    for (name, amount) in least {
        let held = to.entry(name.clone()).or_default();
        *held = (*held).max(*amount);
    }
}

/// `value` in units of `divisor`, rounded up and at least zero, as the downward API shows it
/// (`resourceFieldRef`). A divisor of nothing or zero is 1.
pub fn in_units(value: &str, divisor: Option<&str>) -> Option<String> {
    let divisor = divisor.and_then(thousandths).filter(|divisor| *divisor > 0).unwrap_or(1000);
    let value = thousandths(value)?.max(0);
    Some((value / divisor + i128::from(value % divisor != 0)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_forms_are_read() {
        let read = thousandths;
        assert_eq!(read("1"), Some(1000));
        assert_eq!(read("500m"), Some(500));
        assert_eq!(read("0.5"), Some(500));
        assert_eq!(read("1.5Gi"), Some(1_610_612_736_000));
        assert_eq!(read("2e3"), Some(2_000_000));
        assert_eq!(read("1E"), Some(1_000_000_000_000_000_000_000));
        assert_eq!(read("100n"), Some(1), "rounded up");
        assert_eq!(read("-1k"), Some(-1_000_000));
        for wrong in ["", "x", "1Q", ".", "1e99", "12345678901234567890", " 1", "Gi", "1ee", "--1"]
        {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn units_are_rounded_up() {
        for (value, divisor, wanted) in [
            ("500m", None, "1"),
            ("500m", Some("1m"), "500"),
            ("2Gi", Some("1Mi"), "2048"),
            ("1.5Gi", None, "1610612736"),
            ("100m", Some("0"), "1"),
            ("1e3", None, "1000"),
            ("0", None, "0"),
        ] {
            assert_eq!(in_units(value, divisor).as_deref(), Some(wanted), "{value} / {divisor:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in ".{0,24}") {
            let _ = in_units(&text, Some(&text));
        }
    }
}
