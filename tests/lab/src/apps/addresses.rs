//! Where applications find one another: at the recorded addresses of the services, or by name where there is a DNS
//! server (`LAB_SERVICE_NAMES` is set).

use crate::pods::vip;

/// A service of bookinfo: its name with its port, and the address that was recorded.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    pub name: &'static str,
    recorded: &'static str,
}

pub const DETAILS: Service = Service { name: "details:9080", recorded: vip::DETAILS };
pub const RATINGS: Service = Service { name: "ratings:9080", recorded: vip::RATINGS };
pub const RATINGS_GRPC: Service = Service { name: "ratings:9090", recorded: vip::RATINGS_GRPC };
pub const REVIEWS: Service = Service { name: "reviews:9080", recorded: vip::REVIEWS };
pub const MONGODB: Service = Service { name: "mongodb:27017", recorded: vip::MONGODB };

impl Service {
    /// What to connect to.
    pub fn address(self) -> &'static str {
        if std::env::var_os("LAB_SERVICE_NAMES").is_some() { self.name } else { self.recorded }
    }
}
