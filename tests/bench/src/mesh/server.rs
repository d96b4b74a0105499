//! The application that is called: nginx on the port of the ratings. It goes when the lab goes.

use super::folder;
use crate::load::{LOAD_CORE, nginx_config};
use crate::machine::on_core;
use lab::probe;
use lab::programs::Process;

/// Starts it in a namespace, and waits for it.
pub fn start(name: &str, namespace: &str) -> anyhow::Result<()> {
    let folder = folder(name)?;
    let config = folder.join("nginx.conf");
    std::fs::write(&config, nginx_config(&folder, "0.0.0.0:9080"))?;
    let words = ["-c".to_owned(), config.display().to_string()];
    on_core(LOAD_CORE, || Process::start(name, namespace, "nginx", &words))??;
    probe::wait_ready(name, namespace, "127.0.0.1:9080", "/")
}
