"""Message classes of backstory.v1, made from the descriptor set that the package carries."""
import pathlib

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FILE = pathlib.Path(__file__).with_name("backstory.protoset")
PACKAGE = "backstory.v1"


def _load():
    pool = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(_FILE.read_bytes())
    for file in files.file:  # protoc writes imports first
        pool.Add(file)
    return pool


_POOL = _load()
_CLASSES = {}


def message(name):
    """The class of message `name`, e.g. message("RankRequest")."""
    if name not in _CLASSES:
        descriptor = _POOL.FindMessageTypeByName(f"{PACKAGE}.{name}")
        if hasattr(message_factory, "GetMessageClass"):
            _CLASSES[name] = message_factory.GetMessageClass(descriptor)
        else:  # protobuf before 4.22
            _CLASSES[name] = message_factory.MessageFactory(_POOL).GetPrototype(descriptor)
    return _CLASSES[name]


def enum(name, value):
    """The number of `value` of enum `name`, e.g. enum("Criticality", "CRITICALITY_BATCH")."""
    return _POOL.FindEnumTypeByName(f"{PACKAGE}.{name}").values_by_name[value].number


def method(service, name):
    """(path, request class, response class) of an RPC."""
    descriptor = _POOL.FindServiceByName(f"{PACKAGE}.{service}").methods_by_name[name]
    return (f"/{PACKAGE}.{service}/{name}", message(descriptor.input_type.name), message(descriptor.output_type.name))
