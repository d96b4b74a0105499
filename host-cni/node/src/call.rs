//! One call as the daemon acts on it: the plugin's request, checked again.

use crate::record::{Call, Key, Pod};
use istio_dpu_cni::environment::Command;
use istio_dpu_cni::error::{CniError, code};
use istio_dpu_cni::netconf::NetConf;
use istio_dpu_cni::wire::Request;
use serde_json::Value;

/// A checked request.
#[derive(Clone, Debug)]
pub struct Asked {
    pub command: Command,
    pub key: Key,
    pub pod: Pod,
    /// What delegates need.
    pub call: Call,
    pub conf: NetConf,
}

impl TryFrom<Request> for Asked {
    type Error = CniError;

    fn try_from(request: Request) -> Result<Self, CniError> {
        let environment = request.environment;
        // The socket is not the plugin's alone: what becomes a file name is checked here too.
        environment.check()?;
        let conf = NetConf::parse(Value::Object(request.netconf).to_string().as_bytes())?;
        let args = environment.args;
        Ok(Self {
            command: environment.command,
            key: Key { container_id: environment.container_id, ifname: environment.ifname },
            pod: Pod::from(&args),
            call: Call {
                network: conf.name.clone(),
                netns: environment.netns,
                cni_path: environment.path,
                cni_args: args.raw,
                netconf: conf.raw.clone(),
            },
            conf,
        })
    }
}

impl Asked {
    /// The pod must be named: it is how the controller and the adapter know it.
    pub fn require_pod(&self) -> Result<(), CniError> {
        let missing = |name: &str| {
            CniError::new(code::INVALID_ENVIRONMENT, format!("CNI_ARGS: {name} is missing"))
                .hint("the runtime must name the Kubernetes pod")
        };
        match (self.pod.namespace.is_empty(), self.pod.name.is_empty()) {
            (true, _) => Err(missing("K8S_POD_NAMESPACE")),
            (_, true) => Err(missing("K8S_POD_NAME")),
            _ => Ok(()),
        }
    }
}
