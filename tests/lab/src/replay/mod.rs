//! A control plane that plays back what istiod sent: incremental ADS as istiod speaks it, and its
//! certificate service. Node ids choose the recording; `POST /scenario?NAME` pushes another one.

mod caller;
mod certificates;
mod derived;
mod discovery;
mod recordings;
mod scenario;
mod server;
mod session;

pub use recordings::Recordings;
pub use scenario::{BROKEN_LISTENER, Scenario};
pub use server::{Args, serve};
