//! Envoy's small common types: durations, wrappers, addresses, fractions, data sources.

use super::report::{At, ConfigError};
use crate::model::Fraction;
use ipnet::IpNet;
use mesh_api::envoy::config::core::v3 as core;
use mesh_api::envoy::r#type::v3 as envoy_type;
use mesh_api::envoy_pb::google::protobuf as wkt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A duration that may not be negative.
pub fn duration(at: At<'_>, proto: &wkt::Duration) -> Result<Duration, ConfigError> {
    let nanos = u32::try_from(proto.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    match (u64::try_from(proto.seconds), nanos) {
        (Ok(seconds), Some(nanos)) => Ok(Duration::new(seconds, nanos)),
        _ => Err(at.refuse("a duration must not be negative; give seconds, e.g. 1.5s")),
    }
}

/// A duration that may be unset.
pub fn optional_duration(at: At<'_>, proto: Option<&wkt::Duration>) -> Result<Option<Duration>, ConfigError> {
    proto.map(|proto| duration(at, proto)).transpose()
}

/// A duration with a default.
pub fn duration_or(at: At<'_>, proto: Option<&wkt::Duration>, default: Duration) -> Result<Duration, ConfigError> {
    Ok(optional_duration(at, proto)?.unwrap_or(default))
}

/// A timeout where zero means off; unset is `default`.
pub fn timeout(
    at: At<'_>,
    proto: Option<&wkt::Duration>,
    default: Option<Duration>,
) -> Result<Option<Duration>, ConfigError> {
    Ok(optional_duration(at, proto)?.map_or(default, |value| Some(value).filter(|value| !value.is_zero())))
}

/// A wrapped flag.
pub fn flag(proto: Option<wkt::BoolValue>, default: bool) -> bool {
    proto.map_or(default, |wrapper| wrapper.value)
}

/// A wrapped number.
pub fn number(proto: Option<wkt::UInt32Value>) -> Option<u32> {
    proto.map(|wrapper| wrapper.value)
}

/// A port number.
pub fn port(at: At<'_>, value: u32) -> Result<u16, ConfigError> {
    u16::try_from(value).map_err(|_| at.refuse(format!("{value} is not a port; give 0 to 65535")))
}

/// An IP address with port.
pub fn socket_address(at: At<'_>, proto: Option<&core::Address>) -> Result<SocketAddr, ConfigError> {
    use core::address::Address;
    match proto.and_then(|address| address.address.as_ref()) {
        Some(Address::SocketAddress(address)) => ip_and_port(at.field("socket_address"), address),
        Some(Address::Pipe(_)) => Err(at.field("pipe").refuse("Unix sockets are not supported; give a socket_address")),
        Some(Address::EnvoyInternalAddress(_)) => {
            Err(at.field("envoy_internal_address").refuse("internal listeners are not supported"))
        }
        None => Err(at.refuse("an address is required; give a socket_address")),
    }
}

/// A `SocketAddress` whose address is an IP address.
pub fn ip_and_port(at: At<'_>, proto: &core::SocketAddress) -> Result<SocketAddr, ConfigError> {
    let (host, port) = host_and_port(at, proto)?;
    let ip: IpAddr =
        host.parse().map_err(|_| at.field("address").refuse(format!("{host:?} is not an IP address; give one")))?;
    Ok(SocketAddr::new(ip, port))
}

/// A `SocketAddress` whose address may be a host name.
pub fn host_and_port<'p>(at: At<'_>, proto: &'p core::SocketAddress) -> Result<(&'p str, u16), ConfigError> {
    use core::socket_address::PortSpecifier;
    if proto.protocol == core::socket_address::Protocol::Udp as i32 {
        return Err(at.field("protocol").refuse("UDP is not supported; use TCP"));
    }
    if !proto.network_namespace_filepath.is_empty() {
        return Err(at.field("network_namespace_filepath").refuse("not supported; leave it out"));
    }
    match &proto.port_specifier {
        Some(PortSpecifier::PortValue(value)) => Ok((&proto.address, port(at.field("port_value"), *value)?)),
        Some(PortSpecifier::NamedPort(_)) => Err(at.field("named_port").refuse("not supported; give port_value")),
        None => Err(at.field("port_value").refuse("a port is required")),
    }
}

/// A CIDR range, with host bits cleared. An unset prefix length is 0, as in Envoy.
pub fn cidr(at: At<'_>, proto: &core::CidrRange) -> Result<IpNet, ConfigError> {
    let address: IpAddr = proto
        .address_prefix
        .parse()
        .map_err(|_| at.field("address_prefix").refuse(format!("{:?} is not an IP address", proto.address_prefix)))?;
    let length = proto.prefix_len.as_ref().map_or(0, |wrapper| wrapper.value);
    let net = u8::try_from(length).ok().and_then(|length| IpNet::new(address, length).ok());
    net.map(|net| net.trunc())
        .ok_or_else(|| at.field("prefix_len").refuse(format!("{length} is too long for {address}")))
}

/// CIDR ranges of a repeated field.
pub fn cidrs(at: At<'_>, field: &str, protos: &[core::CidrRange]) -> Result<Vec<IpNet>, ConfigError> {
    protos.iter().enumerate().map(|(index, proto)| cidr(at.item(field, index), proto)).collect()
}

/// A share.
pub fn fraction(at: At<'_>, proto: &envoy_type::FractionalPercent) -> Result<Fraction, ConfigError> {
    use envoy_type::fractional_percent::DenominatorType;
    let denominator = match DenominatorType::try_from(proto.denominator) {
        Ok(DenominatorType::Hundred) => 100,
        Ok(DenominatorType::TenThousand) => 10_000,
        Ok(DenominatorType::Million) => 1_000_000,
        Err(_) => return Err(at.field("denominator").refuse(unknown_enum(proto.denominator))),
    };
    Ok(Fraction { numerator: proto.numerator, denominator })
}

/// The default of a runtime fraction; a runtime key is reported, because there is no runtime.
pub fn runtime_fraction(at: At<'_>, proto: &core::RuntimeFractionalPercent) -> Result<Fraction, ConfigError> {
    runtime_key(at, &proto.runtime_key);
    match &proto.default_value {
        Some(value) => fraction(at.field("default_value"), value),
        None => Ok(Fraction { numerator: 0, denominator: 100 }),
    }
}

/// Reports a runtime key.
pub fn runtime_key(at: At<'_>, key: &str) {
    if !key.is_empty() {
        at.field("runtime_key").unsupported("there is no runtime; the default value is in force");
    }
}

/// The bytes of a data source.
pub fn data_source(at: At<'_>, proto: &core::DataSource) -> Result<Vec<u8>, ConfigError> {
    use core::data_source::Specifier;
    if proto.watched_directory.is_some() {
        at.field("watched_directory").unsupported("the file is read once; reload the configuration to read it again");
    }
    match &proto.specifier {
        Some(Specifier::Filename(path)) => at.field("filename").read_file(path),
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes.clone()),
        Some(Specifier::InlineString(text)) => Ok(text.clone().into_bytes()),
        Some(Specifier::EnvironmentVariable(_)) => {
            Err(at.field("environment_variable").refuse("not supported; give filename, inline_bytes or inline_string"))
        }
        None => Err(at.refuse("give filename, inline_bytes or inline_string")),
    }
}

/// Text of a data source.
pub fn text_source(at: At<'_>, proto: &core::DataSource) -> Result<String, ConfigError> {
    String::from_utf8(data_source(at, proto)?).map_err(|_| at.refuse("the text is not UTF-8"))
}

/// Says that an enum value is not known.
pub fn unknown_enum(value: i32) -> String {
    format!("value {value} is not known to this version")
}

/// A header name, lower case, or a pseudo-header.
pub fn header_name(at: At<'_>, name: &str) -> Result<String, ConfigError> {
    let bare = name.strip_prefix(':').unwrap_or(name);
    match http::HeaderName::from_bytes(bare.as_bytes()) {
        Ok(_) => Ok(name.to_ascii_lowercase()),
        Err(_) => Err(at.refuse(format!("{name:?} is not a header name"))),
    }
}

/// A string field of a `Struct`.
pub fn struct_strings(proto: &wkt::Struct) -> Vec<(String, String)> {
    let mut pairs: Vec<_> =
        proto.fields.iter().filter_map(|(key, value)| Some((key.clone(), scalar(value)?))).collect();
    pairs.sort();
    pairs
}

fn scalar(value: &wkt::Value) -> Option<String> {
    use wkt::value::Kind;
    match value.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone()),
        Kind::BoolValue(flag) => Some(flag.to_string()),
        Kind::NumberValue(number) => Some(number.to_string()),
        _ => None,
    }
}
