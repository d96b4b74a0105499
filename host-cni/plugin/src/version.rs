//! CNI specification versions that are spoken here.

use crate::error::{CniError, code};
use serde_json::{Value, json};

/// Oldest first.
pub const SUPPORTED: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A supported version. Ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(usize);

impl Version {
    /// The first that is spoken.
    pub const OLDEST: Self = Self(0);
    /// CHECK exists from here on.
    pub const V0_4_0: Self = Self(2);
    /// Results carry no `version` beside an address from here on.
    pub const V1_0_0: Self = Self(3);
    /// GC, STATUS, and `mtu` in results.
    pub const V1_1_0: Self = Self(4);

    /// The version that a configuration asks for; a missing one means 0.1.0 (specification, section 1).
    pub fn parse(text: &str) -> Result<Self, CniError> {
        SUPPORTED.iter().position(|known| *known == text).map(Self).ok_or_else(|| {
            let asked = if text.is_empty() { "0.1.0 (cniVersion is missing)" } else { text };
            CniError::new(code::INCOMPATIBLE_VERSION, format!("incompatible CNI version {asked}"))
                .hint(format!("set cniVersion in the network configuration to one of {}", SUPPORTED.join(", ")))
        })
    }

    /// As text.
    pub fn as_str(self) -> &'static str {
        SUPPORTED[self.0]
    }

    /// The newest of `offered` that is supported here and not newer than this one.
    pub fn newest_common(self, offered: &[String]) -> Option<Self> {
        (0..=self.0).rev().find(|index| offered.iter().any(|text| text == SUPPORTED[*index])).map(Self)
    }
}

/// The answer to VERSION.
pub fn answer(asked: Option<&str>) -> Value {
    let echo = asked.filter(|text| !text.is_empty()).unwrap_or(SUPPORTED[SUPPORTED.len() - 1]);
    json!({ "cniVersion": echo, "supportedVersions": SUPPORTED })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_is_not_spoken_is_refused_with_those_that_are() {
        for text in ["", "0.2.0", "2.0.0", "1.1"] {
            let error = Version::parse(text).expect_err(text);
            assert_eq!(error.code, code::INCOMPATIBLE_VERSION);
            assert!(error.details.contains("1.1.0"), "{error}");
        }
    }

    #[test]
    fn versions_compare_by_age() {
        assert!(Version::parse("0.3.1").expect("known") < Version::V0_4_0);
        assert_eq!(Version::parse("1.1.0").expect("known"), Version::V1_1_0);
    }

    #[test]
    fn a_delegate_that_is_older_gets_the_newest_version_that_both_speak() {
        let debian: Vec<String> = ["0.1.0", "0.4.0", "1.0.0"].map(str::to_owned).into();
        assert_eq!(Version::V1_1_0.newest_common(&debian), Some(Version::V1_0_0));
        assert_eq!(Version::V0_4_0.newest_common(&debian), Some(Version::V0_4_0));
        assert_eq!(Version::V1_1_0.newest_common(&["9.9.9".to_owned()]), None);
    }
}
