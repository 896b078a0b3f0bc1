#include "coordinator/cluster/control_server.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <fstream>
#include <mutex>
#include <optional>

#include "common/protocol/framing.h"
#include "common/protocol/secret_proof.h"

namespace expertmesh {
namespace {

using namespace std::chrono_literals;
using boost::asio::ip::tcp;

std::string read_token(ControlServer const& server) {
  std::string token;
  std::ifstream(server.secret().path()) >> token;
  return token;
}

// A worker's socket, without a worker behind it.
class FakeWorker {
 public:
  explicit FakeWorker(ControlServer const& server) : token_(read_token(server)) {
    std::string const address = server.address();
    auto const port = static_cast<unsigned short>(std::stoi(address.substr(address.rfind(':') + 1)));
    socket_.connect(tcp::endpoint(boost::asio::ip::address_v4::loopback(), port));
    nonce_ = std::get<control::Challenge>(*receive()).nonce;
  }

  // No process that the server could kill stands behind the pid.
  control::Hello hello(std::uint32_t worker) const {
    return {.protocol = control::kProtocolVersion,
            .build = control::build_version(),
            .nonce = random_nonce(),
            .proof = {},
            .worker = WorkerId(worker),
            .incarnation = Incarnation(1),
            .pid = std::int64_t{1} << 40,
            .host = "box",
            .device = "cpu",
            .isas = {"scalar"},
            .dtypes = {"float32"},
            .memory_bytes = 1,
            .checkpoint = {}};
  }

  // Proves what it says, and expects to be welcome.
  void introduce(control::Hello hello) {
    hello.proof = control::hello_proof(token_, nonce_, hello);
    send(hello);
    auto const welcome = receive();
    ASSERT_TRUE(welcome && std::holds_alternative<control::Welcome>(*welcome));
    EXPECT_EQ(std::get<control::Welcome>(*welcome).proof,
              control::welcome_proof(token_, nonce_, hello, hello.worker, hello.incarnation));
  }
  void claim(control::Hello hello) {
    hello.proof = control::hello_proof(token_, nonce_, hello);
    send(hello);
  }
  void send(control::Message const& message) { send_raw(encode_frame(control::encode(message))); }
  void send_raw(std::string const& bytes) { boost::asio::write(socket_, boost::asio::buffer(bytes)); }

  // The next message; none at the end of the stream.
  std::optional<control::Message> receive() {
    for (;;) {
      if (auto payload = decoder_.next()) return control::decode(*payload);
      std::array<char, 4096> bytes{};
      boost::system::error_code error;
      std::size_t const count = socket_.read_some(boost::asio::buffer(bytes), error);
      if (error) return std::nullopt;
      decoder_.feed({bytes.data(), count});
    }
  }
  void hang_up() { socket_.close(); }
  [[nodiscard]] std::string const& nonce() const { return nonce_; }

 private:
  boost::asio::io_context io_;
  tcp::socket socket_{io_};
  FrameDecoder decoder_{kMaxFrameBytes};
  std::string token_;
  std::string nonce_;  // the coordinator's
};

struct ControlServerTest : ::testing::Test {
  std::mutex mutex;
  std::vector<WorkerStatus> changes;
  ControlServer server{{.max_workers = 2,
                        .isa = "scalar",
                        .dtype = "float32",
                        .heartbeat_interval = 25ms,
                        .death_timeout = 200ms,
                        .on_change = [this](WorkerStatus const& status) {
                          std::lock_guard lock(mutex);
                          changes.push_back(status);
                        }}};

  void SetUp() override {
    for (std::uint32_t id : {1U, 2U}) server.expect(WorkerId(id), Incarnation(1));
  }
  // Waits, as long as it takes, for a worker to get there.
  void await(std::uint32_t worker, WorkerState state) {
    ASSERT_TRUE(server.wait_until(
        std::chrono::steady_clock::now() + 60s,
        [&](std::vector<WorkerRecord> const& records) { return records[worker - 1].status.state == state; }));
  }
  // From hello to assignment.
  void join(FakeWorker& worker, std::uint32_t id) {
    worker.introduce(worker.hello(id));
    ASSERT_TRUE(server.wait_until(std::chrono::steady_clock::now() + 60s,
                                  [&](auto const& records) { return records[id - 1].joined; }));
    control::Assign assign;
    assign.model_dir = "/model";
    server.assign({.worker = WorkerId(id), .incarnation = server.records()[id - 1].status.incarnation}, assign);
    auto const assignment = worker.receive();
    ASSERT_TRUE(assignment.has_value());
    EXPECT_EQ(std::get<control::Assign>(*assignment).model_dir, "/model");
  }
  std::string refusal(FakeWorker& worker) {
    auto const answer = worker.receive();
    if (!answer) return "hung up";
    auto const* refuse = std::get_if<control::Refuse>(&*answer);
    return refuse != nullptr ? refuse->reason : "no refusal";
  }
};

TEST_F(ControlServerTest, AWorkerJoinsLoadsServesAndLeaves) {
  FakeWorker worker(server);
  join(worker, 2);
  EXPECT_EQ(server.records()[1].status.state, WorkerState::loading);
  EXPECT_EQ(server.records()[1].status.isa, "scalar");
  EXPECT_EQ(server.records()[0].status.state, WorkerState::joining);

  worker.send(control::Progress{.loaded_bytes = 3, .total_bytes = 7});
  worker.send(control::Loaded{.resident_bytes = 7});
  await(2, WorkerState::serving);
  EXPECT_EQ(server.records()[1].loaded_bytes, 3U);
  EXPECT_EQ(server.records()[1].status.resident_bytes, 7U);
  EXPECT_TRUE(server.records()[1].status.heartbeat_age.has_value());

  server.idle();
  EXPECT_TRUE(std::holds_alternative<control::Idle>(*worker.receive()));
  server.shutdown_workers();
  EXPECT_FALSE(std::get<control::Shutdown>(*worker.receive()).for_good) << "the next coordinator may have it";
  worker.hang_up();
  await(2, WorkerState::left);
  EXPECT_TRUE(server.dead(WorkerId(2), Incarnation(1)));
  std::lock_guard lock(mutex);
  ASSERT_EQ(changes.size(), 1U);
  EXPECT_EQ(changes[0].state, WorkerState::serving);
}

TEST_F(ControlServerTest, HangingUpIsDeath) {
  FakeWorker worker(server);
  join(worker, 1);
  worker.send(control::Loaded{});
  await(1, WorkerState::serving);
  worker.hang_up();
  await(1, WorkerState::dead);
  EXPECT_TRUE(server.dead(WorkerId(1), Incarnation(1)));
  EXPECT_FALSE(server.dead(WorkerId(2), Incarnation(1)));
  EXPECT_EQ(server.death_reason(WorkerId(1)), "connection closed");
}

TEST_F(ControlServerTest, SilenceIsDeath) {
  FakeWorker worker(server);
  join(worker, 1);
  worker.send(control::Loaded{});
  await(1, WorkerState::dead);
  EXPECT_EQ(server.death_reason(WorkerId(1)), "no heartbeat for 200 ms");
  EXPECT_EQ(worker.receive(), std::nullopt);  // cut off
}

TEST_F(ControlServerTest, LastWordsAreTheReason) {
  FakeWorker worker(server);
  join(worker, 1);
  worker.send(control::Failed{.kind = control::FailureKind::model, .reason = "tensor x is missing"});
  worker.hang_up();
  await(1, WorkerState::dead);
  EXPECT_EQ(server.records()[0].status.death_reason, "tensor x is missing");
  EXPECT_EQ(server.records()[0].failure_kind, control::FailureKind::model);
}

TEST_F(ControlServerTest, DeathIsDeclaredOnceAndHeardOnce) {
  FakeWorker worker(server);
  join(worker, 1);
  server.declare_dead(WorkerId(1), Incarnation(1), "bad answer");
  await(1, WorkerState::dead);
  server.declare_dead(WorkerId(1), Incarnation(1), "something else");
  EXPECT_EQ(worker.receive(), std::nullopt);
  // The second declaration has been seen once worker 2's is.
  server.declare_dead(WorkerId(2), Incarnation(1), "never came");
  await(2, WorkerState::dead);
  EXPECT_EQ(server.death_reason(WorkerId(1)), "bad answer");
  std::lock_guard lock(mutex);
  EXPECT_EQ(std::ranges::count(changes, WorkerId(1), &WorkerStatus::id), 1);
}

TEST_F(ControlServerTest, ADeadWorkersNextLifeIsAnotherOne) {
  FakeWorker first(server);
  join(first, 1);
  first.send(control::Loaded{});
  first.hang_up();
  await(1, WorkerState::dead);
  FakeWorker early(server);  // before anybody asked for it
  control::Hello hello = early.hello(1);
  hello.incarnation = Incarnation(2);
  early.claim(hello);
  EXPECT_EQ(refusal(early), "incarnation 2, expected 1");

  server.expect(WorkerId(1), Incarnation(2));
  EXPECT_EQ(server.records()[0].status.state, WorkerState::joining);
  FakeWorker late(server);  // a process of the life that is over
  late.claim(late.hello(1));
  EXPECT_EQ(refusal(late), "incarnation 1, expected 2");
  FakeWorker second(server);
  second.introduce(hello);
  ASSERT_TRUE(server.wait_until(std::chrono::steady_clock::now() + 60s,
                                [&](auto const& records) { return records[0].joined; }));
  server.assign({.worker = WorkerId(1), .incarnation = Incarnation(2)}, {});
  ASSERT_TRUE(second.receive().has_value());
  server.idle();
  second.send(control::Loaded{.resident_bytes = 5});
  await(1, WorkerState::serving);
  EXPECT_TRUE(std::holds_alternative<control::Idle>(*second.receive()));  // told while it loaded
  EXPECT_TRUE(std::holds_alternative<control::Idle>(*second.receive()));  // and when it was ready to sleep
  EXPECT_TRUE(server.dead(WorkerId(1), Incarnation(1)));
  EXPECT_FALSE(server.dead(WorkerId(1), Incarnation(2)));
  EXPECT_EQ(server.death_reason(WorkerId(1)), "connection closed");
  server.declare_dead(WorkerId(1), Incarnation(1), "again");  // long over
  server.declare_dead(WorkerId(1), Incarnation(2), "now");
  await(1, WorkerState::dead);
  EXPECT_EQ(server.death_reason(WorkerId(1)), "now");
}

TEST_F(ControlServerTest, WhoDoesNotKnowTheSecretGetsNothing) {
  FakeWorker stranger(server);
  control::Hello hello = stranger.hello(1);
  hello.proof = control::hello_proof("guess", "", hello);
  stranger.send(hello);
  EXPECT_EQ(stranger.receive(), std::nullopt);

  FakeWorker eavesdropper(server);  // repeats what another one said
  control::Hello const overheard = eavesdropper.hello(1);
  FakeWorker honest(server);
  honest.claim(overheard);
  EXPECT_TRUE(std::holds_alternative<control::Welcome>(*honest.receive()));
  honest.hang_up();
  await(1, WorkerState::dead);
  server.expect(WorkerId(1), Incarnation(2));
  control::Hello repeated = overheard;
  repeated.proof = control::hello_proof(read_token(server), honest.nonce(), overheard);
  eavesdropper.send(repeated);
  EXPECT_EQ(eavesdropper.receive(), std::nullopt);

  FakeWorker forger(server);  // a proof of another hello
  control::Hello forged = forger.hello(2);
  forged.proof = control::hello_proof(read_token(server), forger.nonce(), forged);
  forged.worker = WorkerId(1);
  forger.send(forged);
  EXPECT_EQ(forger.receive(), std::nullopt);

  FakeWorker impolite(server);
  impolite.send(control::Loaded{});
  EXPECT_EQ(impolite.receive(), std::nullopt);

  FakeWorker garbage(server);
  garbage.send_raw("GET / HTTP/1.1\r\n\r\n");
  EXPECT_EQ(garbage.receive(), std::nullopt);

  FakeWorker lengthy(server);
  lengthy.send_raw(std::string("\xff\xff\xff\0", 4));
  EXPECT_EQ(lengthy.receive(), std::nullopt);

  EXPECT_EQ(server.records()[0].status.state, WorkerState::joining);
}

TEST_F(ControlServerTest, WhoDoesNotFitIsRefusedByName) {
  auto const refused = [&](auto change) {
    FakeWorker worker(server);
    control::Hello hello = worker.hello(3);  // no such worker, so that none of the two is spoiled
    change(hello);
    worker.claim(hello);
    return refusal(worker);
  };
  EXPECT_EQ(refused([](control::Hello&) {}), "there is no worker 3");
  EXPECT_EQ(refused([](control::Hello& h) { h.worker = WorkerId(0); }),
            "this coordinator takes no workers but its own (see serve --interface)");
  EXPECT_NE(refused([](control::Hello& h) { h.protocol = 1000; }).find("control protocol 1000"), std::string::npos);
  EXPECT_NE(refused([](control::Hello& h) { h.build = "0.0.1"; }).find("build 0.0.1"), std::string::npos);
  EXPECT_EQ(server.records()[0].status.state, WorkerState::joining);

  FakeWorker other_isa(server);
  control::Hello hello = other_isa.hello(1);
  hello.isas = {"avx2"};
  other_isa.claim(hello);
  EXPECT_EQ(refusal(other_isa), "cannot run 'scalar', the numerics profile");
  await(1, WorkerState::dead);
  EXPECT_NE(server.death_reason(WorkerId(1)).find("refused: cannot run 'scalar'"), std::string::npos);
}

TEST_F(ControlServerTest, WhereKernelsMayBeMixedEveryoneRunsTheProfilesOrTheBestItCan) {
  ControlServer mixed{{.max_workers = 3, .isa = "avx2", .mixed_isas = true, .dtype = "float32", .on_change = nullptr}};
  std::vector<std::vector<std::string>> const can{
      {"scalar", "avx2", "avx512_bf16"}, {"cuda"}, {"scalar", "avx512_bf16"}};
  std::vector<std::string> const runs{"avx2", "cuda", "avx512_bf16"};
  for (std::uint32_t id : {1U, 2U, 3U}) {
    mixed.expect(WorkerId(id), Incarnation(1));
    FakeWorker worker(mixed);
    control::Hello hello = worker.hello(id);
    hello.isas = can[id - 1];
    worker.introduce(hello);
    EXPECT_EQ(mixed.records()[id - 1].status.isa, runs[id - 1]);
  }
}

TEST_F(ControlServerTest, WhoComesByItselfIsToldWhoItIs) {
  std::uint32_t places = 1;
  ControlServer open{{.max_workers = 2,
                      .isa = "scalar",
                      .checkpoint = {.config = "c0", .tensors = "7e", .sizes = "51"},
                      .dtype = "float32",
                      .on_change = nullptr,
                      .on_join = [&]() -> std::optional<Life> {
                        if (places == 0) return std::nullopt;
                        --places;
                        return Life{.worker = WorkerId(2), .incarnation = Incarnation(5)};
                      }}};
  auto const come = [&](FakeWorker& worker, std::string const& config) {
    control::Hello hello = worker.hello(0);
    hello.incarnation = Incarnation(0);
    if (!config.empty()) hello.checkpoint = {.config = config, .tensors = "7e", .sizes = "51"};
    worker.claim(hello);
    return worker.receive();
  };
  FakeWorker stranger(open);
  auto const refusal_of_stranger = come(stranger, "c1");
  EXPECT_EQ(std::get<control::Refuse>(*refusal_of_stranger).reason,
            "another checkpoint: not the coordinator's config.json");
  FakeWorker worker(open);
  auto const welcome = std::get<control::Welcome>(*come(worker, "c0"));
  EXPECT_EQ(welcome.worker, WorkerId(2));
  EXPECT_EQ(welcome.incarnation, Incarnation(5));
  EXPECT_TRUE(open.records()[1].joined && open.records()[1].status.remote);
  FakeWorker late(open);
  EXPECT_EQ(std::get<control::Refuse>(*come(late, "")).reason, "there are 2 workers already");
}

TEST_F(ControlServerTest, ASecondClaimToThePlaceOfALivingWorkerIsRefused) {
  FakeWorker first(server);
  join(first, 1);
  FakeWorker second(server);
  second.claim(second.hello(1));
  EXPECT_EQ(refusal(second), "this worker has joined already");
  EXPECT_EQ(server.records()[0].status.state, WorkerState::loading);

  FakeWorker old(server);
  control::Hello hello = old.hello(2);
  hello.incarnation = Incarnation(7);
  old.claim(hello);
  EXPECT_EQ(refusal(old), "incarnation 7, expected 1");
  EXPECT_EQ(server.records()[1].status.state, WorkerState::joining);
}

}  // namespace
}  // namespace expertmesh
