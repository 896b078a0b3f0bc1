#include "common/protocol/control_messages.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "common/protocol/expert_spec_json.h"
#include "common/protocol/json_reader.h"
#include "common/protocol/secret_proof.h"

namespace expertmesh::control {
namespace {

using nlohmann::json;

constexpr std::uint64_t kMaxMessageRows = std::uint64_t{1} << 24;

std::vector<std::vector<std::uint32_t>> held(JsonReader& in, std::string const& where) {
  std::vector<std::vector<std::uint32_t>> out;
  for (auto const& item : in.array("held")) {
    std::string const name = "held[" + std::to_string(out.size()) + "]";
    json const layer = {{name, item}};
    auto const& ids = out.emplace_back(JsonReader(layer, where).numbers(name));
    if (std::ranges::adjacent_find(ids, std::greater_equal{}) != ids.end()) in.fail(name, "not in ascending order");
  }
  return out;
}

// ---- one pair of functions a message: fields out, fields in

json fields(Challenge const& m) {
  return {{"nonce", m.nonce}};
}
void read(JsonReader& in, Challenge& m) {
  m.nonce = in.text("nonce");
}

json to_json(Fingerprint const& f) {
  return {{"config", f.config}, {"tensors", f.tensors}, {"sizes", f.sizes}, {"times", f.times}};
}
Fingerprint fingerprint(json const& object, std::string const& where) {
  JsonReader in(object, where);
  Fingerprint out{
      .config = in.text("config"), .tensors = in.text("tensors"), .sizes = in.text("sizes"), .times = in.text("times")};
  in.finish();
  return out;
}

json fields(Welcome const& m) {
  return {{"worker", m.worker.value()}, {"incarnation", m.incarnation.value()}, {"proof", m.proof}};
}
void read(JsonReader& in, Welcome& m) {
  m.worker = in.id<WorkerId>("worker");
  m.incarnation = in.id<Incarnation>("incarnation");
  m.proof = in.text("proof");
}

json fields(Hello const& m) {
  return {{"protocol", m.protocol},
          {"build", m.build},
          {"nonce", m.nonce},
          {"proof", m.proof},
          {"worker", m.worker.value()},
          {"incarnation", m.incarnation.value()},
          {"pid", m.pid},
          {"host", m.host},
          {"device", m.device},
          {"isas", m.isas},
          {"dtypes", m.dtypes},
          {"memory_bytes", m.memory_bytes},
          {"checkpoint", to_json(m.checkpoint)},
          {"nccl", m.nccl}};
}
void read(JsonReader& in, Hello& m) {
  m.protocol = in.number<std::uint32_t>("protocol");
  m.build = in.text("build");
  m.nonce = in.text("nonce");
  m.proof = in.text("proof");
  m.worker = in.id<WorkerId>("worker");
  m.incarnation = in.id<Incarnation>("incarnation");
  m.pid = in.number<std::int64_t>("pid");
  m.host = in.text("host");
  m.device = in.text("device");
  m.isas = in.texts("isas");
  m.dtypes = in.texts("dtypes");
  m.memory_bytes = in.number("memory_bytes");
  m.checkpoint = fingerprint(in.at("checkpoint"), "hello.checkpoint");
  m.nccl = in.number<std::uint32_t>("nccl");
}

json fields(Connect const& m) {
  return {{"port", m.port}, {"name_server", m.name_server}};
}
void read(JsonReader& in, Connect& m) {
  m.port = in.text("port");
  m.name_server = in.text("name_server");
}

constexpr std::array<JsonReader::Named<TensorKind>, 7> kTensorKinds{{{"numbers", TensorKind::numbers},
                                                                     {"fp8", TensorKind::fp8},
                                                                     {"bytes", TensorKind::bytes},
                                                                     {"words", TensorKind::words},
                                                                     {"int8", TensorKind::int8},
                                                                     {"indices", TensorKind::indices},
                                                                     {"sizes", TensorKind::sizes}}};

char const* name_of(TensorKind kind) {
  return std::ranges::find(kTensorKinds, kind, [](auto const& named) { return named.second; })->first;
}

json fields(Fetch const& m) {
  json out = {{"name", m.tensor.name}, {"shape", m.tensor.shape}, {"kind", name_of(m.tensor.kind)}};
  if (m.index) out["index"] = *m.index;
  return out;
}
void read(JsonReader& in, Fetch& m) {
  m.tensor.name = in.text("name");
  for (auto const& item : in.array("shape")) {
    if (!item.is_number_unsigned()) in.fail("shape", "not a list of sizes");
    m.tensor.shape.push_back(item.get<std::size_t>());
  }
  m.tensor.kind = in.choice("kind", kTensorKinds);
  if (!in.has("index")) return;
  m.index = in.number("index");
  if (m.tensor.shape.empty() || *m.index >= m.tensor.shape.front()) in.fail("index", "not of the first dimension");
}

json fields(Tensor const& m) {
  return {{"dtype", m.dtype}, {"num_bytes", m.num_bytes}};
}
void read(JsonReader& in, Tensor& m) {
  m.dtype = in.text("dtype");
  m.num_bytes = in.number("num_bytes");
}

json fields(Refuse const& m) {
  return {{"reason", m.reason}};
}
void read(JsonReader& in, Refuse& m) {
  m.reason = in.text("reason");
}

json fields(Capacity const& m) {
  return {{"device", m.device},
          {"threads", m.threads},
          {"bytes_per_second", m.bytes_per_second},
          {"measured", m.measured},
          {"memory_bytes", m.memory_bytes}};
}
void read(JsonReader& in, Capacity& m) {
  m.device = in.text("device");
  m.threads = in.number<std::uint32_t>("threads");
  m.bytes_per_second = in.number("bytes_per_second");
  if (m.bytes_per_second == 0) in.fail("bytes_per_second", "is 0");
  m.measured = in.boolean("measured");
  m.memory_bytes = in.number("memory_bytes");
}

json fields(Assign const& m) {
  return {{"isa", m.isa},
          {"model_dir", m.model_dir},
          {"checkpoint", to_json(m.checkpoint)},
          {"weights", m.weights},
          {"load_format", m.load_format == LoadFormat::dummy ? "dummy" : "auto"},
          {"dummy_seed", m.dummy_seed},
          {"model", model_to_json(m.model)},
          {"held", m.held},
          {"epoch", m.epoch.value()},
          {"max_rows", m.limits.max_rows},
          {"max_entries", m.limits.max_entries},
          {"max_requests", m.max_requests},
          {"heartbeat_ms", m.heartbeat_ms},
          {"link_id", m.link_id},
          {"shm", m.shm}};
}
void read(JsonReader& in, Assign& m) {
  m.isa = in.text("isa");
  m.model_dir = in.text("model_dir");
  m.checkpoint = fingerprint(in.at("checkpoint"), "assign.checkpoint");
  m.weights = in.text("weights");
  m.load_format = in.choice<LoadFormat>("load_format", {{"auto", LoadFormat::automatic}, {"dummy", LoadFormat::dummy}});
  m.dummy_seed = in.number("dummy_seed");
  m.model = model_from_json(in.at("model"), "assign.model");
  m.held = held(in, "assign");
  if (m.held.size() > m.model.layers.size()) in.fail("held", "more layers than the model has");
  if (m.held.size() < m.model.layers.size()) in.fail("held", "fewer layers than the model has");
  for (std::size_t i = 0; i < m.held.size(); ++i) {
    std::size_t const num_experts = m.model.layers[i].experts.size();
    if (!m.held[i].empty() && m.held[i].back() >= num_experts)
      in.fail("held[" + std::to_string(i) + "]",
              "expert " + std::to_string(m.held[i].back()) + " of " + std::to_string(num_experts));
  }
  m.epoch = in.id<PlacementEpoch>("epoch");
  m.limits.max_rows = in.number("max_rows", kMaxMessageRows);
  m.limits.max_entries = in.number("max_entries", kMaxMessageRows);
  m.max_requests = in.number<std::uint32_t>("max_requests", 1024);
  if (m.max_requests == 0) in.fail("max_requests", "is 0");
  m.heartbeat_ms = in.number<std::uint32_t>("heartbeat_ms", 60000);
  if (m.heartbeat_ms == 0) in.fail("heartbeat_ms", "is 0");
  m.link_id = in.text("link_id");
  m.shm = in.text("shm");
}

json fields(Progress const& m) {
  return {{"loaded_bytes", m.loaded_bytes}, {"total_bytes", m.total_bytes}};
}
void read(JsonReader& in, Progress& m) {
  m.loaded_bytes = in.number("loaded_bytes");
  m.total_bytes = in.number("total_bytes");
}

json fields(Loaded const& m) {
  return {{"epoch", m.epoch.value()},
          {"resident_bytes", m.resident_bytes},
          {"held", m.held},
          {"checksums", m.checksums},
          {"transport", m.transport}};
}
void read(JsonReader& in, Loaded& m) {
  m.epoch = in.id<PlacementEpoch>("epoch");
  m.resident_bytes = in.number("resident_bytes");
  m.held = held(in, "loaded");
  for (auto const& layer : in.array("checksums")) {
    if (!layer.is_array()) in.fail("checksums", "not lists of numbers");
    auto& sums = m.checksums.emplace_back();
    for (auto const& sum : layer) {
      if (!sum.is_number_unsigned()) in.fail("checksums", "not lists of numbers");
      sums.push_back(sum.get<std::uint64_t>());
    }
  }
  bool const fits = std::ranges::equal(
      m.held, m.checksums, {}, [](auto const& ids) { return ids.size(); },
      [](auto const& sums) { return sums.size(); });
  if (!fits) in.fail("checksums", "not one for each expert held");
  m.transport = in.text("transport");
}

json fields(Hold const& m) {
  return {{"held", m.held}, {"epoch", m.epoch.value()}};
}
void read(JsonReader& in, Hold& m) {
  m.held = held(in, "hold");
  m.epoch = in.id<PlacementEpoch>("epoch");
}

json fields(Shutdown const& m) {
  return {{"for_good", m.for_good}};
}
void read(JsonReader& in, Shutdown& m) {
  m.for_good = in.boolean("for_good");
}

json fields(Failed const& m) {
  return {{"kind", m.kind == FailureKind::model ? "model" : "other"}, {"reason", m.reason}};
}
void read(JsonReader& in, Failed& m) {
  m.kind = in.choice<FailureKind>("kind", {{"model", FailureKind::model}, {"other", FailureKind::other}});
  m.reason = in.text("reason");
}

template <class Signal>
requires std::is_empty_v<Signal> json fields(Signal const&) {
  return json::object();
}
template <class Signal>
requires std::is_empty_v<Signal>
void read(JsonReader&, Signal&) {}

// In the order of Message's alternatives.
constexpr char const* kTypes[] = {"challenge", "hello",   "welcome",   "refuse", "assign",  "progress", "loaded",
                                  "hold",      "leaving", "heartbeat", "idle",   "wake",    "shutdown", "failed",
                                  "connect",   "called",  "fetch",     "tensor", "capacity"};
static_assert(std::size(kTypes) == std::variant_size_v<Message>);

template <std::size_t I = 0>
Message decode_as(std::string const& type, JsonReader& in) {
  if constexpr (I == std::variant_size_v<Message>) {
    throw MessageError("control message: unknown type '" + type + "'");
  } else {
    if (type != kTypes[I]) return decode_as<I + 1>(type, in);
    std::variant_alternative_t<I, Message> message;
    read(in, message);
    in.finish();
    return message;
  }
}

}  // namespace

std::string build_version() {
  return EM_BUILD_VERSION;
}

namespace {
// The whole hello but the proof itself.
std::string bound_by(Hello hello) {
  hello.proof.clear();
  return encode(hello);
}
}  // namespace

std::string hello_proof(std::string_view secret, std::string_view coordinator_nonce, Hello const& hello) {
  return prove(secret, Prover::worker, coordinator_nonce, hello.nonce, bound_by(hello));
}

std::string welcome_proof(std::string_view secret, std::string_view coordinator_nonce, Hello const& hello,
                          WorkerId worker, Incarnation incarnation) {
  return prove(secret, Prover::coordinator, coordinator_nonce, hello.nonce,
               bound_by(hello) + std::to_string(worker.value()) + '/' + std::to_string(incarnation.value()));
}

std::string encode(Message const& message) {
  json object = std::visit([](auto const& m) { return fields(m); }, message);
  object["type"] = kTypes[message.index()];
  return object.dump(-1, ' ', false, json::error_handler_t::replace);
}

Message decode(std::string_view text) {
  json const object = json::parse(text, nullptr, false);
  if (object.is_discarded()) throw MessageError("control message: not JSON");
  std::string const type = JsonReader(object, "control message").text("type");
  JsonReader in(object, type);
  in.at("type");
  return decode_as(type, in);
}

}  // namespace expertmesh::control
