//! Sets of completion indexes in the form of `status.completedIndexes`: `0-2,5`.

use std::collections::BTreeSet;

/// Parts that are no index or range are skipped; `below` bounds the indexes.
pub fn parse(text: &str, below: u32) -> BTreeSet<u32> {
    let mut indexes = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<u32>(), last.trim().parse::<u32>()) {
            indexes.extend(first..last.saturating_add(1).min(below));
        }
    }
    indexes
}

pub fn write(indexes: &BTreeSet<u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for index in indexes {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => ranges.push((*index, *index)),
        }
    }
    let parts: Vec<_> = ranges
        .into_iter()
        .map(|(first, last)| match last - first {
            0 => first.to_string(),
            1 => format!("{first},{last}"),
            _ => format!("{first}-{last}"),
        })
        .collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(indexes in proptest::collection::btree_set(0..50_u32, 0..30)) {
            prop_assert_eq!(parse(&write(&indexes), 50), indexes);
        }
    }

    #[test]
    fn ranges_are_written_as_kubernetes_does() {
        assert_eq!(write(&[0, 1, 2, 5, 7, 8].into()), "0-2,5,7,8");
        assert_eq!(parse("x,3-1,2", 10), [2].into());
    }
}
