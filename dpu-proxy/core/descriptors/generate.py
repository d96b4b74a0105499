#!/usr/bin/env python3
"""Makes envoy.binpb, the descriptors by which configuration in YAML and JSON is read.

Input: the descriptor set that the crate envoy-types carries in its sources (Envoy's API, Apache-2.0):
    ./generate.py ~/.cargo/registry/src/*/envoy-types-*/src/generated/types.bin
Needs `pip install protobuf`. Comments, options, services and annotations are left out; Istio's few
types, which that crate does not have, are added (field numbers of Istio's and xDS's own .proto files).
"""

import pathlib
import sys

from google.protobuf import descriptor_pb2 as pb

FIELD = pb.FieldDescriptorProto
UNUSED = ("udpa/annotations", "xds/annotations", "validate/", "envoy/annotations", "google/api/http", "google/api/annotations",
          "google/protobuf/descriptor")
WANTED = ("envoy/", "xds/", "google/", "cel/", "opentelemetry/", "io/")


def plain_enum(enum):
    alias = enum.options.allow_alias
    enum.ClearField("options")
    if alias:
        enum.options.allow_alias = True
    for value in enum.value:
        value.ClearField("options")


def plain_message(message):
    is_map = message.options.map_entry
    message.ClearField("options")
    if is_map:
        message.options.map_entry = True
    for field in message.field:
        field.ClearField("options")
    for oneof in message.oneof_decl:
        oneof.ClearField("options")
    for nested in message.nested_type:
        plain_message(nested)
    for enum in message.enum_type:
        plain_enum(enum)


def plain_file(file):
    for part in ("source_code_info", "options", "service", "extension"):
        file.ClearField(part)
    for message in file.message_type:
        plain_message(message)
    for enum in file.enum_type:
        plain_enum(enum)
    used = [name for name in file.dependency if not name.startswith(UNUSED)]
    del file.dependency[:]
    del file.public_dependency[:]
    file.dependency.extend(used)
    return file


def message(name, *fields, nested=()):
    made = pb.DescriptorProto(name=name, nested_type=nested)
    for number, (field, kind, *more) in fields:
        label = FIELD.LABEL_REPEATED if "repeated" in more else FIELD.LABEL_OPTIONAL
        camel = "".join(part.capitalize() if at else part for at, part in enumerate(field.split("_")))
        made.field.add(name=field, number=number, label=label, json_name=camel, **kind)
    return made


def file(name, package, messages, *dependencies):
    return pb.FileDescriptorProto(name=name, package=package, syntax="proto3", message_type=messages, dependency=dependencies)


def of(type_name):
    return {"type": FIELD.TYPE_MESSAGE, "type_name": type_name}


STRING = {"type": FIELD.TYPE_STRING}
BOOL = {"type": FIELD.TYPE_BOOL}
INT32 = {"type": FIELD.TYPE_INT32}


def istio():
    typed_struct = message("TypedStruct", (1, ("type_url", STRING)), (2, ("value", of(".google.protobuf.Struct"))))
    yield file("udpa/type/v1/typed_struct.proto", "udpa.type.v1", [typed_struct], "google/protobuf/struct.proto")
    protocol = {"type": FIELD.TYPE_ENUM, "type_name": ".istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig.Protocol"}
    override = message("AlpnOverride", (1, ("upstream_protocol", protocol)), (2, ("alpn_override", STRING, "repeated")))
    alpn = message("FilterConfig", (1, ("alpn_override", of(".istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig.AlpnOverride"), "repeated")), nested=[override])
    values = [pb.EnumValueDescriptorProto(name=name, number=at) for at, name in enumerate(("HTTP10", "HTTP11", "HTTP2"))]
    alpn.enum_type.add(name="Protocol", value=values)
    yield file("istio/alpn.proto", "istio.envoy.config.filter.http.alpn.v2alpha1", [alpn])
    plugin = message("PluginConfig", (3, ("disable_host_header_fallback", BOOL)))
    yield file("istio/stats.proto", "stats", [plugin])


def main():
    everything = pb.FileDescriptorSet.FromString(pathlib.Path(sys.argv[1]).read_bytes())
    wanted = [file for file in everything.file if file.name.startswith(WANTED) and not file.name.startswith(UNUSED)]
    out = pb.FileDescriptorSet(file=[plain_file(file) for file in wanted])
    out.file.extend(istio())
    pathlib.Path(__file__).with_name("envoy.binpb").write_bytes(out.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
