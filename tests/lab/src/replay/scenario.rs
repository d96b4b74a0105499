//! Which configuration is in force: as recorded, or a change of it.

use std::str::FromStr;

/// What every workload is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scenario {
    /// `0-demo`: weights 50/30/20, two authorization policies.
    #[default]
    Demo,
    /// `0-demo-shift`: recorded after the weights became 0/0/100.
    Shift,
    /// `0-demo` as after deleting both authorization policies: derived by leaving out the RBAC filters.
    Open,
    /// `0-demo` with one listener more, whose content is garbage.
    Broken,
    /// `0-demo` without two clusters, which a listener (of mongodb) and a route (to details) go on naming.
    Dangling,
    /// `0-demo` with the endpoints of two services at addresses of pods that have another identity.
    Misplaced,
}

/// The listener that does not parse.
pub const BROKEN_LISTENER: &str = "broken-listener";

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Demo, Self::Shift, Self::Open, Self::Broken, Self::Dangling, Self::Misplaced];

    /// As in the control address.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Demo => "0-demo",
            Self::Shift => "0-demo-shift",
            Self::Open => "0-demo-open",
            Self::Broken => "0-demo-broken",
            Self::Dangling => "0-demo-dangling",
            Self::Misplaced => "0-demo-misplaced",
        }
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::as_str).join(", ");
        Self::ALL
            .into_iter()
            .find(|one| one.as_str() == text)
            .ok_or_else(|| format!("no scenario {text:?}: there are {}", known()))
    }
}
