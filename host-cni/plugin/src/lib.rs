//! The Container Network Interface as this project speaks it.
//!
//! In: the environment and standard input of one call. Out: a checked request for the node daemon,
//! or a CNI error. The binary beside it hands the request over; the daemon uses the same types to
//! act on it. The protocol is our own and not `rscni-plugin`'s: the daemon needs the untouched
//! configuration for delegated plugins, results in the shape of each version, errors that pass
//! through the socket with their code, and IPAM delegation, none of which that crate has.

#![forbid(unsafe_code)]

pub mod environment;
pub mod error;
pub mod netconf;
pub mod result;
pub mod version;
pub mod wire;

use environment::{Command, Environment};
use error::{CniError, code};
use netconf::NetConf;
use serde_json::Value;
use std::time::Duration;
use wire::{Answer, Request};

/// Time that the daemon gets beyond waiting for the port.
const DAEMON_MARGIN: Duration = Duration::from_secs(30);

/// Handles one call. `Some` is printed on standard output.
pub fn run(get: impl Fn(&str) -> Option<String>, stdin: &[u8]) -> Result<Option<Value>, CniError> {
    let environment = Environment::read(get)?;
    if environment.command == Command::Version {
        return Ok(Some(version::answer(netconf::asked_version(stdin).as_deref())));
    }
    let conf = NetConf::parse(stdin)?;
    check_command(environment.command, &conf)?;
    let timeout = conf.ready_timeout + DAEMON_MARGIN;
    let status = environment.command == Command::Status;
    let request = Request { environment, netconf: conf.raw };
    match wire::call(&conf.daemon_socket, &request, timeout) {
        Ok(Answer::Done(result)) => Ok(result),
        Ok(Answer::Failed(error)) => Err(error),
        Err(error) if status => Err(CniError { code: code::NOT_AVAILABLE, ..error }),
        Err(error) => Err(error),
    }
}

/// What the asked version must know for this command.
fn check_command(command: Command, conf: &NetConf) -> Result<(), CniError> {
    let since = match command {
        Command::Check => version::Version::V0_4_0,
        Command::Gc | Command::Status => version::Version::V1_1_0,
        Command::Add | Command::Del | Command::Version => version::Version::OLDEST,
    };
    if conf.version < since {
        let msg =
            format!("{command:?} needs CNI {} and the configuration says {}", since.as_str(), conf.version.as_str());
        return Err(CniError::new(code::INCOMPATIBLE_VERSION, msg).hint("raise cniVersion"));
    }
    if command == Command::Add && conf.ipam_type.is_none() {
        let error = CniError::new(code::INVALID_CONFIG, "network configuration: ipam is missing");
        return Err(error.hint("a pod needs an address, e.g. \"ipam\": {\"type\": \"host-local\", …}"));
    }
    if command == Command::Check && conf.previous_result.is_none() {
        let error = CniError::new(code::INVALID_CONFIG, "network configuration: prevResult is missing");
        return Err(error.hint("CHECK needs the result of ADD"));
    }
    Ok(())
}
