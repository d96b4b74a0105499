//! Whose a token is: asked of the API server.

use crate::watchers::explain;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, PostParams};

/// Audience of the tokens.
pub const AUDIENCE: &str = "dpumesh";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Whose a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub namespace: String,
    pub service_account: String,
    /// Node of the pod that the token is bound to.
    pub node: String,
}

/// Why it is nobody's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// The API server could not be asked; trying again may help.
    #[error("the API server could not be asked: {0}")]
    Unavailable(String),
    #[error("the API server does not know the token: {0}")]
    Unknown(String),
    /// It knows the token, which is of no use here.
    #[error("{0}")]
    Unsuited(String),
}

/// Says whose a token is.
pub trait Review: Send + Sync + 'static {
    fn review(&self, token: &str) -> impl Future<Output = Result<Caller, ReviewError>> + Send;
}

/// By TokenReview.
#[derive(Clone)]
#[allow(missing_debug_implementations)]
pub struct ApiServer(pub Client);

impl Review for ApiServer {
    async fn review(&self, token: &str) -> Result<Caller, ReviewError> {
        let spec = TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: Some(token.to_owned()) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = Api::<TokenReview>::all(self.0.clone()).create(&PostParams::default(), &review).await;
        let status = answer.map_err(unavailable)?.status.unwrap_or_default();
        match reviewed(status)? {
            Reviewed { caller, pod: None } => Ok(caller),
            Reviewed { caller, pod: Some(pod) } => self.on_node_of(caller, pod).await,
        }
    }
}

impl ApiServer {
    /// Before 1.32 a token names its pod only; the pod names the node.
    async fn on_node_of(&self, caller: Caller, bound: BoundPod) -> Result<Caller, ReviewError> {
        let pods = Api::<Pod>::namespaced(self.0.clone(), &caller.namespace);
        let pod = pods.get_opt(&bound.name).await.map_err(unavailable)?;
        let pod = pod.filter(|pod| pod.metadata.uid.as_ref() == Some(&bound.uid));
        let node = pod.and_then(|pod| pod.spec?.node_name);
        let gone = || ReviewError::Unsuited(format!("the token's pod {}/{} is gone", caller.namespace, bound.name));
        Ok(Caller { node: node.ok_or_else(gone)?, ..caller })
    }
}

fn unavailable(error: kube::Error) -> ReviewError {
    ReviewError::Unavailable(explain(&error))
}

#[derive(Debug, PartialEq, Eq)]
struct Reviewed {
    caller: Caller,
    /// Set when the node is still to be found.
    pod: Option<BoundPod>,
}

#[derive(Debug, PartialEq, Eq)]
struct BoundPod {
    name: String,
    uid: String,
}

fn reviewed(status: TokenReviewStatus) -> Result<Reviewed, ReviewError> {
    if status.authenticated != Some(true) {
        let reason = status.error.unwrap_or_else(|| "it is not authenticated".to_owned());
        return Err(ReviewError::Unknown(reason));
    }
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err(ReviewError::Unsuited(format!("the token is not for the audience {AUDIENCE}")));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.as_deref().unwrap_or_default();
    let account = name.strip_prefix(SERVICE_ACCOUNT).and_then(|rest| rest.split_once(':'));
    let (namespace, service_account) =
        account.ok_or_else(|| ReviewError::Unsuited(format!("{name:?} is no service account")))?;
    let caller =
        |node: String| Caller { namespace: namespace.to_owned(), service_account: service_account.to_owned(), node };
    if let Some(node) = extra(&user, NODE_NAME) {
        return Ok(Reviewed { caller: caller(node), pod: None });
    }
    match (extra(&user, POD_NAME), extra(&user, POD_UID)) {
        (Some(name), Some(uid)) => Ok(Reviewed { caller: caller(String::new()), pod: Some(BoundPod { name, uid }) }),
        _ => Err(ReviewError::Unsuited(format!("the token of {name} is bound to no pod: use a projected one"))),
    }
}

fn extra(user: &UserInfo, name: &str) -> Option<String> {
    user.extra.as_ref()?.get(name)?.first().filter(|value| !value.is_empty()).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn status(user: &str, audience: &str, extra: &[(&str, &str)]) -> TokenReviewStatus {
        let extra = extra.iter().map(|(name, value)| ((*name).to_owned(), vec![(*value).to_owned()]));
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![audience.to_owned()]),
            user: Some(UserInfo {
                username: Some(user.to_owned()),
                extra: Some(extra.collect::<BTreeMap<_, _>>()),
                ..UserInfo::default()
            }),
            ..TokenReviewStatus::default()
        }
    }

    const ADAPTER: &str = "system:serviceaccount:dpumesh-system:dpumesh-adapter";

    #[test]
    fn a_bound_token_names_program_and_node() {
        let known = reviewed(status(ADAPTER, AUDIENCE, &[(NODE_NAME, "host1"), (POD_NAME, "a"), (POD_UID, "u")]));
        let caller = Caller {
            namespace: "dpumesh-system".to_owned(),
            service_account: "dpumesh-adapter".to_owned(),
            node: "host1".to_owned(),
        };
        assert_eq!(known, Ok(Reviewed { caller: caller.clone(), pod: None }));
        let older = reviewed(status(ADAPTER, AUDIENCE, &[(POD_NAME, "a"), (POD_UID, "u")]));
        let pod = Some(BoundPod { name: "a".to_owned(), uid: "u".to_owned() });
        assert_eq!(older, Ok(Reviewed { caller: Caller { node: String::new(), ..caller }, pod }));
    }

    #[test]
    fn other_tokens_are_of_no_use_and_the_reason_is_told() {
        for (status, reason) in [
            (TokenReviewStatus { error: Some("expired".to_owned()), ..TokenReviewStatus::default() }, "expired"),
            (status(ADAPTER, "istio-ca", &[(NODE_NAME, "host1")]), "audience dpumesh"),
            (status("kubernetes-admin", AUDIENCE, &[(NODE_NAME, "host1")]), "no service account"),
            (status(ADAPTER, AUDIENCE, &[]), "bound to no pod"),
        ] {
            let error = reviewed(status).expect_err(reason).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
