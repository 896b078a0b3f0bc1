#include "common/protocol/control_messages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <tuple>

#include "common/protocol/framing.h"
#include "common/protocol/secret_proof.h"

namespace expertmesh::control {
namespace {

using nlohmann::json;

Assign sample_assign() {
  Assign m;
  m.model_dir = "/models/a \"b\"";
  m.load_format = LoadFormat::dummy;
  m.dummy_seed = 0xffffffffffffffffU;
  for (std::uint32_t layer : {1U, 3U}) {
    ExpertLayerSpec spec{.layer = layer, .hidden = 8, .intermediate = 4, .experts = {}};
    for (int e = 0; e < 3; ++e) {
      std::string const at = std::to_string(layer) + "." + std::to_string(e);
      spec.experts.push_back({.gate = WeightSlice{"gate" + at}, .up = {"up" + at}, .down = {"down" + at}});
    }
    m.model.layers.push_back(spec);
  }
  m.model.weights = kBfloat16Weights;
  m.model.wire = DType::bf16;
  m.held = {{0, 2}, {}};
  m.epoch = PlacementEpoch(3);
  m.limits = {.max_rows = 16, .max_entries = 32};
  m.max_requests = 2;
  m.heartbeat_ms = 25;
  m.link_id = "ab01";
  m.shm = "7 /proc/1/fd/3";
  return m;
}

Hello sample_hello() {
  return {.protocol = 1,
          .build = "0.1.0",
          .nonce = "41",
          .proof = "7f",
          .worker = WorkerId(2),
          .incarnation = Incarnation(1),
          .pid = 4711,
          .host = "box",
          .device = "cpu",
          .isas = {"avx2"},
          .dtypes = {"float32", "bfloat16"},
          .memory_bytes = 1ULL << 40,
          .checkpoint = {.config = "c0", .tensors = "7e", .sizes = "51", .times = "a2"},
          .nccl = 22809};
}

std::string error_of(std::string const& text) {
  try {
    decode(text);
  } catch (MessageError const& error) {
    return error.what();
  }
  return "";
}

// The error after `change` has been applied to the JSON of a good message.
template <class Change>
std::string error_after(Message const& message, Change change) {
  json object = json::parse(encode(message));
  change(object);
  return error_of(object.dump());
}

TEST(ControlMessages, RoundTripKeepsEveryField) {
  auto const hello = std::get<Hello>(decode(encode(sample_hello())));
  EXPECT_EQ(encode(hello), encode(sample_hello()));
  EXPECT_EQ(hello.worker, WorkerId(2));
  EXPECT_EQ(hello.nccl, 22809U);
  EXPECT_EQ(hello.dtypes, (std::vector<std::string>{"float32", "bfloat16"}));

  auto const assign = std::get<Assign>(decode(encode(sample_assign())));
  EXPECT_EQ(encode(assign), encode(sample_assign()));
  EXPECT_EQ(assign.model_dir, "/models/a \"b\"");
  EXPECT_EQ(assign.load_format, LoadFormat::dummy);
  EXPECT_EQ(assign.link_id, "ab01");
  EXPECT_EQ(assign.shm, "7 /proc/1/fd/3");
  EXPECT_EQ(assign.dummy_seed, 0xffffffffffffffffU);
  EXPECT_EQ(assign.model.layers[1].layer, 3U);
  EXPECT_EQ(assign.model.layers[1].experts[2].down.name, "down3.2");
  EXPECT_EQ(assign.model.weights, kBfloat16Weights);
  EXPECT_EQ(assign.held, (std::vector<std::vector<std::uint32_t>>{{0, 2}, {}}));
  EXPECT_EQ(assign.limits, (DispatchLimits{.max_rows = 16, .max_entries = 32}));

  auto const failed = std::get<Failed>(decode(encode(Failed{.kind = FailureKind::model, .reason = "no \xff file"})));
  EXPECT_EQ(failed.kind, FailureKind::model);
  EXPECT_EQ(failed.reason, "no \xEF\xBF\xBD file");  // what is no UTF-8 arrives as U+FFFD

  for (Fetch const& fetch :
       {Fetch{.tensor = {"a.b", {3, 5}}}, Fetch{.tensor = {"a.b", {7}, TensorKind::bytes}},
        Fetch{.tensor = {"a", {3, 5}, TensorKind::fp8}, .index = 2}, Fetch{.tensor = {"a", {3, 5}, TensorKind::words}},
        Fetch{.tensor = {"a", {3, 5}, TensorKind::int8}}, Fetch{.tensor = {"a", {3}, TensorKind::indices}},
        Fetch{.tensor = {"a", {2}, TensorKind::sizes}}}) {
    auto const decoded = std::get<Fetch>(decode(encode(fetch)));
    EXPECT_EQ(decoded.tensor, fetch.tensor);
    EXPECT_EQ(decoded.index, fetch.index);
  }
  EXPECT_EQ(error_of(encode(Fetch{.tensor = {"a", {3, 5}}, .index = 3})), "fetch.index: not of the first dimension");
  EXPECT_EQ(error_of(encode(Fetch{.tensor = {"a", {}}, .index = 0})), "fetch.index: not of the first dimension");
  EXPECT_EQ(std::get<Tensor>(decode(encode(Tensor{.dtype = "float32", .num_bytes = 60}))).num_bytes, 60U);
  EXPECT_EQ(std::get<Connect>(decode(encode(Connect{.port = "1.0:2", .name_server = "3.0;tcp"}))).name_server,
            "3.0;tcp");
  EXPECT_EQ(
      std::get<Welcome>(decode(encode(Welcome{.worker = WorkerId(4), .incarnation = Incarnation(2), .proof = "5"})))
          .worker,
      WorkerId(4));

  EXPECT_EQ(std::get<Progress>(decode(encode(Progress{.loaded_bytes = 3, .total_bytes = 7}))).total_bytes, 7U);
  EXPECT_EQ(std::get<Loaded>(decode(encode(Loaded{.resident_bytes = 9}))).resident_bytes, 9U);
  auto const loaded = std::get<Loaded>(decode(encode(Loaded{.epoch = PlacementEpoch(4),
                                                            .resident_bytes = 9,
                                                            .held = {{1, 5}, {}},
                                                            .checksums = {{7, 1ULL << 63}, {}},
                                                            .transport = "mpi (why)"})));
  EXPECT_EQ(loaded.held, (std::vector<std::vector<std::uint32_t>>{{1, 5}, {}}));
  EXPECT_EQ(loaded.checksums, (std::vector<std::vector<std::uint64_t>>{{7, 1ULL << 63}, {}}));
  EXPECT_EQ(loaded.transport, "mpi (why)");
  EXPECT_EQ(error_of(encode(Loaded{.held = {{1}}, .checksums = {{}}})),
            "loaded.checksums: not one for each expert held");
  EXPECT_EQ(std::get<Refuse>(decode(encode(Refuse{.reason = "full"}))).reason, "full");
  EXPECT_TRUE(std::holds_alternative<Heartbeat>(decode(encode(Heartbeat{}))));
  EXPECT_TRUE(std::holds_alternative<Idle>(decode(encode(Idle{}))));
  EXPECT_TRUE(std::holds_alternative<Wake>(decode(encode(Wake{}))));
  for (bool const for_good : {false, true})
    EXPECT_EQ(std::get<Shutdown>(decode(encode(Shutdown{.for_good = for_good}))).for_good, for_good);
  EXPECT_TRUE(std::holds_alternative<Called>(decode(encode(Called{}))));

  Capacity const capacity{.device = "cuda:0 NVIDIA H200",
                          .threads = 3,
                          .bytes_per_second = 4'800'000'000'000,
                          .measured = false,
                          .memory_bytes = 1ULL << 37};
  auto const decoded = std::get<Capacity>(decode(encode(capacity)));
  EXPECT_EQ(encode(decoded), encode(capacity));
  EXPECT_FALSE(decoded.measured);
  EXPECT_EQ(error_after(capacity, [](json& m) { m["bytes_per_second"] = 0; }), "capacity.bytes_per_second: is 0");
}

// The values of RFC 4231, test case 2, would check OpenSSL; this checks what a proof depends on.
TEST(ControlMessages, AProofFitsOneSecretOneConnectionOneDirectionAndOneHello) {
  Hello const hello = sample_hello();
  std::string const proof = hello_proof("secret", "nonce", hello);
  EXPECT_EQ(proof.size(), 64U);
  EXPECT_TRUE(same_proof(proof, hello_proof("secret", "nonce", hello)));
  EXPECT_FALSE(same_proof(proof, hello_proof("secrets", "nonce", hello)));
  EXPECT_FALSE(same_proof(proof, hello_proof("secret", "another", hello)));
  EXPECT_FALSE(same_proof(proof, welcome_proof("secret", "nonce", hello, hello.worker, hello.incarnation)));
  EXPECT_FALSE(same_proof(welcome_proof("secret", "nonce", hello, WorkerId(1), Incarnation(12)),
                          welcome_proof("secret", "nonce", hello, WorkerId(11), Incarnation(2))));
  EXPECT_FALSE(same_proof(proof, ""));
  for (auto const change :
       {+[](Hello& h) { h.worker = WorkerId(3); }, +[](Hello& h) { h.incarnation = Incarnation(2); },
        +[](Hello& h) { h.nonce = "42"; }, +[](Hello& h) { h.pid = 1; }}) {
    Hello other = hello;
    change(other);
    EXPECT_FALSE(same_proof(proof, hello_proof("secret", "nonce", other)));
  }
  Hello claimed = hello;
  claimed.proof = "anything";  // is not part of what is proved
  EXPECT_TRUE(same_proof(proof, hello_proof("secret", "nonce", claimed)));
}

TEST(ControlMessages, AnotherCheckpointIsNamed) {
  Fingerprint const ours = sample_hello().checkpoint;
  EXPECT_EQ(difference(ours, ours), "");
  Fingerprint theirs = ours;
  theirs.tensors = "8e";
  EXPECT_EQ(difference(ours, theirs), "tensor index (names, types, shapes or places)");
  theirs.sizes = "61";
  EXPECT_EQ(difference(ours, theirs), "weight files (their names or sizes)");
  theirs.config = "c1";
  EXPECT_EQ(difference(ours, theirs), "config.json");
}

TEST(ControlMessages, WhatIsNoMessageIsRefused) {
  EXPECT_EQ(error_of(""), "control message: not JSON");
  EXPECT_EQ(error_of("{"), "control message: not JSON");
  EXPECT_EQ(error_of("[]"), "control message: not an object");
  EXPECT_EQ(error_of("{}"), "control message.type: missing");
  EXPECT_EQ(error_of(R"({"type":1})"), "control message.type: not a string");
  EXPECT_EQ(error_of(R"({"type":"bye"})"), "control message: unknown type 'bye'");
  EXPECT_EQ(error_of(std::string(100000, '[')), "control message: not JSON");
}

TEST(ControlMessages, EachMissingFieldIsNamed) {
  for (Message const& message :
       {Message(sample_hello()), Message(sample_assign()), Message(Progress{}), Message(Loaded{}), Message(Failed{}),
        Message(Refuse{}), Message(Challenge{}), Message(Welcome{})}) {
    json const good = json::parse(encode(message));
    for (auto const& [field, value] : good.items()) {
      if (field == "type") continue;
      json bad = good;
      bad.erase(field);
      EXPECT_EQ(error_of(bad.dump()), good["type"].get<std::string>() + "." + field + ": missing");
      bad[field] = nullptr;
      EXPECT_NE(error_of(bad.dump()).find(field), std::string::npos);
    }
  }
}

TEST(ControlMessages, BadValuesAreNamed) {
  EXPECT_EQ(error_after(sample_hello(), [](json& j) { j["extra"] = 1; }), "hello.extra: unknown field");
  EXPECT_EQ(error_after(Heartbeat{}, [](json& j) { j["x"] = 1; }), "heartbeat.x: unknown field");
  EXPECT_EQ(error_after(sample_hello(), [](json& j) { j["worker"] = -1; }), "hello.worker: not an unsigned integer");
  EXPECT_EQ(error_after(sample_hello(), [](json& j) { j["worker"] = 1.5; }), "hello.worker: not an unsigned integer");
  EXPECT_EQ(error_after(sample_hello(), [](json& j) { j["worker"] = 4294967296U * 2; }),
            "hello.worker: 8589934592 is more than 4294967295");
  EXPECT_EQ(error_after(sample_hello(), [](json& j) { j["dtypes"] = {1}; }),
            "hello.dtypes: holds something that is not a string");
  EXPECT_EQ(error_after(sample_assign(), [](json& j) { j["load_format"] = "fast"; }),
            "assign.load_format: unknown value 'fast'");
  EXPECT_EQ(error_after(sample_assign(), [](json& j) { j["model"]["layers"][1]["hidden"] = 0; }),
            "assign.model.layers[1].hidden: is 0");
  EXPECT_EQ(error_after(sample_assign(), [](json& j) { j["model"]["layers"][1]["layer"] = 1; }),
            "assign.model.layers: not in ascending order");
  EXPECT_EQ(error_after(sample_assign(), [](json& j) { j["model"]["layers"][0]["experts"][2].erase("up"); }),
            "assign.model.layers[0].experts[2].up: missing");
  EXPECT_EQ(error_after(sample_assign(), [](json& j) { j["model"]["weights"]["storage"] = "int3"; }),
            "assign.model.weights.storage: unknown value 'int3'");
  auto const in_layer = [](auto change) {
    return error_after(sample_assign(), [&](json& j) { change(j["model"]["layers"][1]); });
  };
  std::string const layer = "assign.model.layers[1].";
  EXPECT_EQ(in_layer([](json& l) { l["activation"] = "swish"; }), layer + "activation: unknown value 'swish'");
  EXPECT_EQ(in_layer([](json& l) { l["limit"] = 1; }), layer + "limit: out of place, or not above 0");
  EXPECT_EQ(in_layer([](json& l) { l["alpha"] = "1"; }), layer + "alpha: not a number");
  EXPECT_EQ(in_layer([](json& l) { l["experts"][1].erase("gate"); }),
            layer + "experts[1].gate: some experts of the layer have one, some have none");
  EXPECT_EQ(in_layer([](json& l) { l["experts"][1]["up_bias"] = "b"; }),
            layer + "experts[1].up_bias: some experts of the layer have one, some have none");
  EXPECT_EQ(in_layer([](json& l) { l["experts"][0]["bias"] = "b"; }), layer + "experts[0].bias: unknown field");
  EXPECT_EQ(in_layer([](json& l) { l["experts"][0]["up"] = 7; }), layer + "experts[0].up: not an object");
  EXPECT_EQ(in_layer([](json& l) { l["experts"][0]["up"] = {{"stack", 2}}; }), layer + "experts[0].up.name: missing");
  for (auto const& [field, value, problem] : std::vector<std::tuple<char const*, json, std::string>>{
           {"stack", 1 << 25, ".stack: 33554432 is more than 16777216"},
           {"stack", -1, ".stack: not an unsigned integer"},
           {"index", 1, ": number 1 of a stack of 0"},
           {"stored_rows", 3, ": reaches number 3 of 3 stored"},
           {"first_row", 1, ": reaches number 4 of 4 stored"},
           {"row_step", 0, ": a step of 0"},
           {"transposed", 1, ".transposed: not a boolean"},
           {"storage", "int4", ".storage: unknown value 'int4'"},
           {"storage", "mxfp4", ": mxfp4 rows of 8, no multiple of 32"},
           {"step", 1, ".step: unknown field"}})
    EXPECT_EQ(in_layer([&](json& l) {
                l["experts"][2]["up"] = {{"name", "u"}, {field, value}};
              }),
              layer + "experts[2].up" + problem);
  EXPECT_EQ(error_after(sample_assign(), [](json& j) { j["held"][1] = {3}; }), "assign.held[1]: expert 3 of 3");
  EXPECT_EQ(error_after(sample_assign(),
                        [](json& j) {
                          j["held"][0] = {1, 1};
                        }),
            "assign.held[0]: not in ascending order");
  EXPECT_EQ(error_after(sample_assign(), [](json& j) { j["held"].erase(1); }),
            "assign.held: fewer layers than the model has");
  EXPECT_EQ(error_after(sample_assign(), [](json& j) { j["held"].push_back(json::array()); }),
            "assign.held: more layers than the model has");
  EXPECT_EQ(error_after(sample_assign(), [](json& j) { j["heartbeat_ms"] = 0; }), "assign.heartbeat_ms: is 0");
}

// ---- every spec that makes sense arrives as it was
class RandomSpec {
 public:
  explicit RandomSpec(unsigned seed) : random_(seed) {}

  ExpertModelSpec model() {
    ExpertModelSpec out;
    for (std::size_t l = 1 + below(3); l-- > 0;) {
      std::uint32_t const after = out.layers.empty() ? 0 : out.layers.back().layer + 1;
      out.layers.push_back(layer(after + static_cast<std::uint32_t>(below(3))));
    }
    out.weights = flip() ? kBfloat16Weights : flip() ? kInt8Weights : flip() ? kInt4Weights : kFloat32Weights;
    out.wire = flip() ? DType::bf16 : DType::f32;
    return out;
  }

 private:
  std::size_t below(std::size_t n) { return random_() % n; }
  bool flip() { return below(2) == 0; }
  std::size_t sometimes(std::size_t otherwise) { return flip() ? otherwise : 1 + below(9); }

  ExpertLayerSpec layer(std::uint32_t index) {
    ExpertLayerSpec out{
        .layer = index, .hidden = 32 * (1 + below(3)), .intermediate = 32 * (1 + below(3)), .experts = {}};
    bool const gated = flip();
    bool const biases[] = {gated && flip(), flip(), flip()};
    auto const kinds = gated ? 5U : 4U;  // the last needs a gate
    out.activation.kind = static_cast<Activation>(below(kinds));
    if (out.activation.kind == Activation::clamped_silu) {
      out.activation.alpha = static_cast<float>(below(1000)) / 7.0F;
      out.activation.limit = static_cast<float>(1 + below(1000)) / 3.0F;
    }
    for (std::size_t e = below(5); e-- > 0;) {
      FfnTensors& t = out.experts.emplace_back(
          FfnTensors{.up = weight(out.intermediate, out.hidden), .down = weight(out.hidden, out.intermediate)});
      if (gated) t.gate = weight(out.intermediate, out.hidden);
      if (biases[0]) t.gate_bias = vector(out.intermediate);
      if (biases[1]) t.up_bias = vector(out.intermediate);
      if (biases[2]) t.down_bias = vector(out.hidden);
    }
    return out;
  }

  WeightSlice weight(std::size_t n, std::size_t k) {
    WeightSlice w{.name = "w" + std::to_string(below(1000)), .storage = static_cast<WeightStorage>(below(5))};
    bool const integers = w.storage == WeightStorage::integers;
    if (integers) w.integers = stored_integers();
    if (!integers && flip()) w.index = below(w.stack = 1 + below(9));
    w.transposed = !integers && w.storage != WeightStorage::mxfp4 && flip();
    w.first_row = flip() ? 0 : below(9);
    w.row_step = sometimes(1);
    if (w.first_row != 0 || w.row_step != 1 || flip())
      w.stored_rows = w.first_row + (n - 1) * w.row_step + 1 + below(9);
    w.block_rows = sometimes(128);
    w.block_columns = sometimes(128);
    EXPECT_EQ(problem_of(w, n, k), "");
    return w;
  }

  StoredIntegers stored_integers() {
    StoredIntegers i{.layout = static_cast<IntegerLayout>(below(4)), .group_size = flip() ? 0 : 1 + below(200)};
    i.bits = i.layout == IntegerLayout::bytes || (i.layout != IntegerLayout::awq && flip()) ? 8 : 4;
    i.zero_points = static_cast<ZeroPoints>(below(i.layout == IntegerLayout::gptq ? 3 : 2));
    i.has_group_index = i.layout != IntegerLayout::awq && flip();
    i.one_scale = i.layout == IntegerLayout::bytes && i.group_size == 0 && !i.has_group_index && flip();
    return i;
  }

  VectorSlice vector(std::size_t n) {
    VectorSlice v{.name = "v \"" + std::to_string(below(1000))};
    if (flip()) v.index = below(v.stack = 1 + below(9));
    v.first = flip() ? 0 : below(9);
    v.step = sometimes(1);
    if (v.first != 0 || v.step != 1 || flip()) v.stored_length = v.first + (n - 1) * v.step + 1 + below(9);
    EXPECT_EQ(problem_of(v, n), "");
    return v;
  }

  std::mt19937 random_;
};

TEST(ControlMessages, EverySpecArrivesAsItWas) {
  std::set<std::string> seen;
  for (unsigned seed = 0; seed < 500; ++seed) {
    Assign sent = sample_assign();
    sent.model = RandomSpec(seed).model();
    sent.held.assign(sent.model.layers.size(), {});
    std::string const text = encode(sent);
    auto const got = std::get<Assign>(decode(text)).model;
    ASSERT_TRUE(got == sent.model) << text;
    seen.insert(text);
  }
  EXPECT_GT(seen.size(), 400U);
}

// 58 layers of 256 experts have to fit into a frame, with room.
TEST(ControlMessages, ALargeModelsAssignmentIsCompact) {
  Assign m = sample_assign();
  m.model.layers.clear();
  m.held.clear();
  for (std::uint32_t l = 3; l < 61; ++l) {
    ExpertLayerSpec layer{.layer = l, .hidden = 7168, .intermediate = 2048, .experts = {}};
    for (std::uint32_t e = 0; e < 256; ++e) {
      std::string const at = "model.layers." + std::to_string(l) + ".mlp.experts." + std::to_string(e) + ".";
      auto const quantised = [&](char const* name) {  // in one of the longest forms
        return WeightSlice{.name = at + name + "_proj",
                           .storage = WeightStorage::integers,
                           .integers = {.layout = IntegerLayout::gptq,
                                        .group_size = 128,
                                        .zero_points = ZeroPoints::stored_minus_one,
                                        .has_group_index = true}};
      };
      layer.experts.push_back({.gate = quantised("gate"), .up = quantised("up"), .down = quantised("down")});
    }
    m.model.layers.push_back(layer);
    m.held.emplace_back();
  }
  EXPECT_LT(encode(m).size(), kMaxFrameBytes / 8);
}

// A seed that is refused at its first field tells a fuzzer little.
TEST(ControlMessages, TheSeedsOfTheFuzzTargetAreGoodMessages) {
  std::size_t count = 0;
  for (auto const& seed : std::filesystem::directory_iterator(EM_SOURCE_DIR "/tests/fuzz/corpus/control_messages")) {
    std::ifstream file(seed.path(), std::ios::binary);
    std::string const text{std::istreambuf_iterator<char>(file), {}};
    std::vector<std::string> messages{text};
    if (seed.path().filename().string().starts_with("framed_")) {
      FrameDecoder decoder(kMaxHelloBytes);
      decoder.feed(text);
      messages.clear();
      while (auto frame = decoder.next()) messages.push_back(*frame);
      EXPECT_FALSE(messages.empty());
    }
    for (auto const& message : messages) EXPECT_EQ(error_of(message), "") << seed.path();
    ++count;
  }
  EXPECT_GT(count, 10U);
}

TEST(ControlMessages, DamagedTextIsDecodedOrRefused) {
  std::mt19937 random(2);
  std::string const good = encode(sample_assign());
  std::size_t refused = 0;
  for (int round = 0; round < 2000; ++round) {
    std::string text = good;
    for (int flips = 0; flips < 2; ++flips) text[random() % text.size()] = static_cast<char>(random());
    if (!error_of(text).empty()) ++refused;
  }
  EXPECT_GT(refused, 0U);
}

}  // namespace
}  // namespace expertmesh::control
