//! Kubernetes quantities (`500m`, `2Gi`), as far as `resourceFieldRef` needs them.

/// The value of a quantity; `None` if it is not one.
pub fn parse(text: &str) -> Option<f64> {
    let split =
        text.find(|c: char| !(c.is_ascii_digit() || ".+-".contains(c))).unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(split)?;
    let factor = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024.0_f64.powi(2),
        "Gi" => 1024.0_f64.powi(3),
        "Ti" => 1024.0_f64.powi(4),
        "Pi" => 1024.0_f64.powi(5),
        "Ei" => 1024.0_f64.powi(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            10.0_f64.powi(exponent)
        }
    };
    let value = number.parse::<f64>().ok()? * factor;
    value.is_finite().then_some(value)
}

/// `value` in units of `divisor`, rounded up, as the downward API shows it. A divisor of nothing or zero is 1.
pub fn in_units(value: &str, divisor: Option<&str>) -> Option<String> {
    let divisor = divisor.and_then(parse).filter(|&d| d > 0.0).unwrap_or(1.0);
    // Against 0.1 / 0.001 being a little more than 100.
    let units = (parse(value)? / divisor - 1e-6).ceil();
    let units = if units > 0.0 { units } else { 0.0 };
    Some(format!("{units:.0}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        for wrong in ["", "x", "1x", "Gi", "1ee", "--1"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_harmless(text in ".*") {
            let _ = in_units(&text, Some(&text));
        }
    }
}
