//! SPIFFE identities of workloads: `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Who a workload is. Parsed from and printed as its SPIFFE id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Identity {
    trust_domain: String,
    namespace: String,
    service_account: String,
}

/// Why a text is no workload identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a workload identity: expected spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT")]
pub struct IdentityError {
    text: String,
}

impl Identity {
    /// An identity of its three parts. Each must be non-empty and without `/`.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, IdentityError> {
        let valid = |part: &str| !part.is_empty() && !part.contains('/');
        let identity = Self {
            trust_domain: trust_domain.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
        };
        match valid(trust_domain) && valid(namespace) && valid(service_account) {
            true => Ok(identity),
            false => Err(IdentityError { text: identity.to_string() }),
        }
    }

    /// E.g. `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let error = || IdentityError { text: text.to_owned() };
        let rest = text.strip_prefix("spiffe://").ok_or_else(error)?;
        let parts: Vec<&str> = rest.split('/').collect();
        match parts[..] {
            [trust_domain, "ns", namespace, "sa", account] => {
                Self::new(trust_domain, namespace, account).map_err(|_| error())
            }
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl From<Identity> for String {
    fn from(identity: Identity) -> Self {
        identity.to_string()
    }
}

impl TryFrom<String> for Identity {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_prints_as_what_it_was_parsed_from() {
        let text = "spiffe://cluster.local/ns/bookinfo/sa/reviews";
        assert_eq!(text.parse::<Identity>().expect("valid").to_string(), text);
    }

    #[test]
    fn what_is_not_a_workload_identity_is_refused_with_its_text() {
        for text in ["", "spiffe://", "spiffe://td/ns//sa/x", "http://td/ns/a/sa/b", "spiffe://td/ns/a/sa/b/c"] {
            let error = text.parse::<Identity>().expect_err(text);
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }
}
