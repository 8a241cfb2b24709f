//! Sizes as people write them: `64`, `4k`, `1m`.

/// Parses a number of bytes, with `k`, `m` or `g` for powers of 1024.
pub(crate) fn parse(text: &str) -> Result<usize, String> {
    let lower = text.trim().to_ascii_lowercase();
    let number = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &lower[number.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        unit => {
            return Err(format!("unknown unit `{unit}`: write bytes, or a number with k, m or g, such as 64, 4k, 1m"));
        }
    };
    let number: usize = number
        .parse()
        .map_err(|_| "not a size: write bytes, or a number with k, m or g, such as 64, 4k, 1m".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

/// Writes a number of bytes in the largest unit that fits without a remainder.
pub(crate) fn show(bytes: usize) -> String {
    const UNITS: [(u32, &str); 3] = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    for (shift, unit) in UNITS {
        if bytes > 0 && bytes % (1 << shift) == 0 {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::{parse, show};

    #[test]
    fn sizes_are_read_with_and_without_a_unit() {
        let read = |text| parse(text).unwrap();
        assert_eq!(
            [read("8"), read("8b"), read("4k"), read("4KiB"), read("1M"), read("2g")],
            [8, 8, 4096, 4096, 1 << 20, 2 << 30]
        );
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "k", "-1", "1.5k", "12q", "x", "1 k 2", "99999999999999999999", "99999999999g"] {
            assert!(parse(text).is_err(), "{text:?} was taken for a size");
        }
    }

    #[test]
    fn sizes_are_written_in_the_largest_whole_unit() {
        assert_eq!(
            [show(0), show(8), show(1000), show(1024), show(65536), show(3 << 20)],
            ["0 B", "8 B", "1000 B", "1 KiB", "64 KiB", "3 MiB"]
        );
    }
}
