// Tensors from the coordinator's checkpoint to a worker that has none, and nothing more than it asked for.
#include "coordinator/cluster/weight_server.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <functional>
#include <thread>

#include "common/base/error.h"
#include "common/checkpoint/weight_reader.h"
#include "common/protocol/blocking_connection.h"
#include "tests/support/memory_weights.h"
#include "tests/support/model_copy.h"
#include "tests/support/stored_integers.h"
#include "worker/remote_weights.h"

namespace expertmesh {
namespace {

using boost::asio::ip::tcp;
using test::MemoryWeights;

constexpr char const* kSecret = "known to both";

struct Served {
  Served() {
    unsigned next = 0;
    auto const fill = [&](std::span<std::byte> bytes) {
      for (std::byte& byte : bytes) byte = static_cast<std::byte>(next++ * 37 % 101);
    };
    fill(source.add("numbers", DType::bf16, {3, 4, 8}));
    fill(source.add("codes", DType::f8_e4m3, {3, 4, 8}));
    fill(source.add("codes_scale_inv", DType::f32, {3, 1, 1}));
    fill(source.add("fp4_blocks", DType::u8, {3, 4, 2, 16}));
    fill(source.add("fp4_scales", DType::u8, {3, 4, 2}));
  }
  MemoryWeights source;
  WeightServer server{source, {.secret = kSecret}};
};

std::vector<float> read(WeightSource const& source, WeightSlice const& slice, std::size_t rows, std::size_t k) {
  std::vector<float> out;
  WeightReader(source).read(slice, rows, k, [&](WeightRows const& part) {
    StoredTensor view;
    view.dtype = part.type;
    view.bytes = {part.data, part.count * k * size_of(part.type)};
    auto const floats = to_floats(view);
    out.insert(out.end(), floats.begin(), floats.end());
  });
  return out;
}

TEST(WeightServer, GivesTensorsOfEveryKindWholeOrByTheEntry) {
  Served here;
  auto const there = fetch_weights(here.server.address(), kSecret, {});
  for (auto const& [name, kind, shape] : std::vector<std::tuple<char const*, TensorKind, std::vector<std::size_t>>>{
           {"numbers", TensorKind::numbers, {3, 4, 8}},
           {"codes", TensorKind::fp8, {3, 4, 8}},
           {"fp4_scales", TensorKind::bytes, {3, 4, 2}}}) {
    TensorInfo const info{name, shape, kind};
    StoredTensor const whole = there->load(info);
    EXPECT_TRUE(std::ranges::equal(whole.bytes, here.source.bytes(name)));
    EXPECT_EQ(whole.dtype, here.source.load(info).dtype);
    EXPECT_EQ(whole.shape, shape);
    for (std::size_t e = 0; e < 3; ++e) {
      StoredTensor const entry = there->load_entry(info, e);
      EXPECT_EQ(entry.shape, std::vector<std::size_t>(shape.begin() + 1, shape.end()));
      EXPECT_TRUE(std::ranges::equal(entry.bytes, here.source.load_entry(info, e).bytes)) << name << " " << e;
      EXPECT_EQ(entry.bytes.size() * 3, whole.bytes.size());
    }
  }
}

TEST(WeightServer, AWeightIsTheSameFromHereAndFromThere) {
  Served here;
  auto const there = fetch_weights(here.server.address(), kSecret, {});
  for (WeightSlice const& slice :
       {WeightSlice{.name = "numbers", .stack = 3, .index = 2, .stored_rows = 4, .first_row = 1, .row_step = 2},
        {.name = "codes",
        .stack = 3,
        .index = 1,
        .stored_rows = 4,
        .row_step = 2,
        .storage = WeightStorage::fp8_blocks},
        {.name = "fp4", .stack = 3, .index = 1, .stored_rows = 4, .first_row = 2, .storage = WeightStorage::mxfp4}}) {
    std::size_t const k = slice.storage == WeightStorage::mxfp4 ? 64 : 8;
    auto const local = read(here.source, slice, 2, k);
    std::size_t const before = here.source.reads().size();
    EXPECT_EQ(read(*there, slice, 2, k), local) << slice.name;
    auto const reads = here.source.reads();
    ASSERT_GT(reads.size(), before);
    for (std::size_t i = before; i < reads.size(); ++i) EXPECT_EQ(reads[i].second, slice.index) << reads[i].first;
  }
}

TEST(WeightServer, IntegersAreTheSameFromHereAndFromThere) {
  for (IntegerLayout const layout : {IntegerLayout::gptq, IntegerLayout::packed, IntegerLayout::bytes}) {
    StoredIntegers const form{.layout = layout, .bits = 8, .group_size = 5, .has_group_index = true};
    std::mt19937 random(1);
    auto const matrix = test::random_matrix(form, 6, 17, random);
    Served here;
    for (auto const& tensor : test::stored_tensors(form, "m", matrix, DType::bf16))
      std::ranges::copy(tensor.bytes, here.source.add(tensor.name, tensor.dtype, tensor.shape).begin());
    auto const there = fetch_weights(here.server.address(), kSecret, {});
    WeightSlice const slice{.name = "m",
                            .stored_rows = 6,
                            .first_row = 1,
                            .row_step = 2,
                            .storage = WeightStorage::integers,
                            .integers = form};
    auto const numbers = read(*there, slice, 2, 17);
    EXPECT_EQ(numbers, read(here.source, slice, 2, 17));
    EXPECT_EQ(numbers[17 + 4], matrix.weight(3, 4));
  }
}

TEST(WeightServer, SaysWhatIsWrongAndGoesOn) {
  Served here;
  auto const there = fetch_weights(here.server.address(), kSecret, {});
  EXPECT_NE(test::refusal([&] {
              (void)there->load({"nowhere", {1}});
            }).find("'nowhere' is missing"),
            std::string::npos);
  for (TensorInfo const& wrong : {TensorInfo{"codes", {3, 4, 8}}, TensorInfo{"codes", {3, 8, 4}, TensorKind::fp8},
                                  TensorInfo{"fp4_scales", {3, 4, 2}, TensorKind::fp8}})
    EXPECT_THROW((void)there->load(wrong), ModelError);
  EXPECT_EQ(there->load({"codes", {3, 4, 8}, TensorKind::fp8}).bytes.size(), 96U);
  EXPECT_THROW((void)fetch_weights(here.server.address(), "another", {}), NetworkError);
}

// ---- a coordinator that answers wrongly
class Liar {
 public:
  explicit Liar(control::Tensor answer) : acceptor_(io_, tcp::endpoint(boost::asio::ip::address_v4::loopback(), 0)) {
    thread_ = std::thread([this, answer] {
      tcp::socket socket(io_);
      acceptor_.accept(socket);
      BlockingConnection connection(std::move(socket), "worker");
      try {
        connection.send(control::Challenge{.nonce = "1"});
        auto const hello = std::get<control::Hello>(connection.receive(kMaxHelloBytes));
        connection.send(
            control::Welcome{.worker = hello.worker,
                             .incarnation = hello.incarnation,
                             .proof = control::welcome_proof(kSecret, "1", hello, hello.worker, hello.incarnation)});
        (void)connection.receive(kMaxHelloBytes);
        connection.send(answer);
        connection.send_bytes(std::vector<std::byte>(std::min<std::size_t>(answer.num_bytes, 64)));
        (void)connection.receive(kMaxHelloBytes);  // until it leaves
      } catch (NetworkError const&) {              // NOLINT(bugprone-empty-catch): it left
      }
    });
  }
  ~Liar() { thread_.join(); }
  [[nodiscard]] std::string address() const { return "127.0.0.1:" + std::to_string(acceptor_.local_endpoint().port()); }

 private:
  boost::asio::io_context io_;
  tcp::acceptor acceptor_;
  std::thread thread_;
};

TEST(RemoteWeights, AnAnswerOfAnotherSizeOrTypeIsRefusedBeforeItsBytes) {
  TensorInfo const info{"w", {3, 4}, TensorKind::fp8};
  for (control::Tensor const& answer : {control::Tensor{.dtype = "F8_E4M3", .num_bytes = 12},
                                        {.dtype = "F8_E4M3", .num_bytes = 5},
                                        {.dtype = "F8_E4M3", .num_bytes = 1ULL << 60},
                                        {.dtype = "U8", .num_bytes = 4},
                                        {.dtype = "Q9", .num_bytes = 4},
                                        {.dtype = "BF16", .num_bytes = 8},
                                        {.dtype = "", .num_bytes = 0}}) {
    Liar const liar(answer);
    auto const there = fetch_weights(liar.address(), kSecret, {});
    try {
      (void)there->load_entry(info, 1);
      ADD_FAILURE() << answer.num_bytes << " bytes of " << answer.dtype << " were taken";
    } catch (NetworkError const& error) {
      EXPECT_NE(std::string(error.what()).find("w: " + std::to_string(answer.num_bytes) + " bytes of " + answer.dtype),
                std::string::npos)
          << error.what();
    }
  }
}

}  // namespace
}  // namespace expertmesh
