//! Whether this daemon goes for good when it is told to stop: it asks the API server for its DaemonSet.

use clap::Args;
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use std::time::Duration;

/// A stop must not wait for an API server that is away.
const PATIENCE: Duration = Duration::from_secs(8);
const BETWEEN: Duration = Duration::from_millis(500);

/// The DaemonSet that runs this daemon. Needs the permission to `get` it.
#[derive(Args, Clone, Debug, Default)]
pub struct Owner {
    /// Name of the DaemonSet that runs this daemon: when that is deleted, what was installed is removed.
    #[arg(long, env = "DAEMONSET_NAME", value_name = "NAME", requires = "daemonset_namespace")]
    daemonset: Option<String>,
    /// Namespace of that DaemonSet.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    daemonset_namespace: Option<String>,
}

/// What becomes of the installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Another daemon follows this one.
    Stays,
    /// The DaemonSet is gone, or going.
    Goes,
    /// Why nobody could tell.
    Unknown(String),
}

/// One answer of the API server.
type Answer = Result<Option<PartialObjectMeta<DaemonSet>>, kube::Error>;

impl Owner {
    /// Asks until there is an answer, or for as long as a stop may take. `was_permitted`: it could be
    /// asked before.
    pub async fn fate(&self, was_permitted: bool) -> Fate {
        let mut last = Fate::Unknown("no answer".to_owned());
        let asked = async {
            loop {
                last = judge(self.ask().await, was_permitted);
                if !matches!(last, Fate::Unknown(_)) {
                    return;
                }
                tokio::time::sleep(BETWEEN).await;
            }
        };
        // What was heard last is the answer then.
        let _ = tokio::time::timeout(PATIENCE, asked).await;
        last
    }

    /// Whether the DaemonSet can be asked for; an error says what is missing.
    pub async fn check(&self) -> Result<(), String> {
        match tokio::time::timeout(PATIENCE, self.ask()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(explain(&error)),
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        }
    }

    /// Whether a DaemonSet is named.
    pub fn is_known(&self) -> bool {
        self.daemonset.is_some()
    }

    /// `NAMESPACE/NAME`, for a person.
    pub fn name(&self) -> String {
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        format!("{}/{}", part(&self.daemonset_namespace), part(&self.daemonset))
    }

    async fn ask(&self) -> Answer {
        let (name, namespace) = (self.daemonset.as_deref(), self.daemonset_namespace.as_deref());
        let client = Client::try_default().await?;
        let api: Api<DaemonSet> = Api::namespaced(client, namespace.unwrap_or_default());
        api.get_metadata_opt(name.unwrap_or_default()).await
    }
}

/// A permission that was there and is not any more went with the release, of which it is a part.
fn judge(answer: Answer, was_permitted: bool) -> Fate {
    match answer {
        Ok(None) => Fate::Goes,
        Ok(Some(found)) if found.metadata.deletion_timestamp.is_some() => Fate::Goes,
        Ok(Some(_)) => Fate::Stays,
        Err(kube::Error::Api(status)) if was_permitted && matches!(status.code, 401 | 403) => Fate::Goes,
        Err(error) => Fate::Unknown(explain(&error)),
    }
}

fn explain(error: &kube::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::{ObjectMeta, Status};

    fn found(deleted: bool) -> Answer {
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time::from(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        let metadata = ObjectMeta { deletion_timestamp: deleted.then_some(now), ..ObjectMeta::default() };
        Ok(Some(PartialObjectMeta { types: None, metadata, _phantom: std::marker::PhantomData }))
    }

    fn refused(code: u16) -> Answer {
        Err(kube::Error::Api(Box::new(Status { code, reason: "no".to_owned(), ..Status::default() })))
    }

    #[test]
    fn the_installation_goes_with_its_daemonset_and_stays_over_restarts() {
        assert_eq!(judge(found(false), true), Fate::Stays);
        assert_eq!(judge(found(true), true), Fate::Goes);
        assert_eq!(judge(Ok(None), true), Fate::Goes);
    }

    #[test]
    fn a_permission_that_was_withdrawn_went_with_the_release_and_one_that_never_was_tells_nothing() {
        for code in [401, 403] {
            assert_eq!(judge(refused(code), true), Fate::Goes);
            assert!(matches!(judge(refused(code), false), Fate::Unknown(_)));
        }
        assert!(matches!(judge(refused(500), true), Fate::Unknown(_)));
    }
}
