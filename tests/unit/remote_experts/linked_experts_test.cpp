// Rows by links between emulated devices, through the library that stands in for NCCL: every worker is a thread with a
// device of its own that runs the real loop. The bits are those of the same workers by way of the host.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <thread>

#include "common/base/task.h"
#include "common/transport/nccl_link.h"
#include "coordinator/cluster/static_split.h"
#include "coordinator/experts/remote_experts.h"
#include "device_on_host.h"
#include "tests/support/tiny_experts.h"
#include "tests/unit/remote_experts/thread_transport.h"
#include "worker/worker_link.h"
#include "worker/worker_loop.h"

namespace expertmesh {
namespace {

using test::MadeUpWeights;
using test::Routing;
using test::ThreadTransport;
using test::ThreadWire;
using test::tiny_model;

constexpr std::size_t kExperts = 7;
constexpr std::size_t kMaxTokens = 33;
constexpr std::size_t kMaxRequests = 2;
constexpr PlacementEpoch kEpoch{1};
auto const kIgnoreBytes = [](std::size_t, std::size_t) {};

std::shared_ptr<NcclApi> stand_in() {
  static std::shared_ptr<NcclApi> const api = [] {
    setenv("EXPERTMESH_NCCL", EM_NCCL_ON_HOST, 1);
    return load_nccl();
  }();
  return api;
}

std::shared_ptr<RowLink> link_of(std::string const& id, Device& device, LinkEnd end) {
  return make_nccl_link(stand_in(), nccl_id_of(id).value(), device,
                        {.end = end,
                         .peer = "the other",
                         .connect_time = std::chrono::minutes(5),
                         .transfer_time = std::chrono::minutes(5)},
                        std::chrono::steady_clock::now());
}

// Where a worker may die: at the n-th passing of one of these points.
enum class Point : std::uint8_t { never, before_rows, behind_rows, before_answer, behind_answer, before_header };
struct Died {};
class Mortal {
 public:
  void die_at(Point point) { point_ = point; }
  void pass(Point point) const {
    if (point_ == point) throw Died();
  }

 private:
  std::atomic<Point> point_ = Point::never;
};

class MortalLink final : public RowLink {
 public:
  MortalLink(std::shared_ptr<RowLink> link, Mortal const& mortal) : link_(std::move(link)), mortal_(mortal) {}
  [[nodiscard]] State state() const override { return link_->state(); }
  [[nodiscard]] std::string failure() const override { return link_->failure(); }
  void poll(Time now) override { link_->poll(now); }
  LinkMark send(std::span<std::byte const> rows) override {
    mortal_.pass(Point::before_answer);
    LinkMark const mark = link_->send(rows);
    mortal_.pass(Point::behind_answer);
    return mark;
  }
  LinkMark recv(std::span<std::byte> rows, std::optional<DType> type) override {
    mortal_.pass(Point::before_rows);
    LinkMark const mark = link_->recv(rows, type);
    mortal_.pass(Point::behind_rows);
    return mark;
  }
  [[nodiscard]] bool enqueued() const override { return link_->enqueued(); }
  void hold_device() override { link_->hold_device(); }
  [[nodiscard]] bool done(LinkMark mark) const override { return link_->done(mark); }
  [[nodiscard]] bool found_infinities(LinkMark mark) const override { return link_->found_infinities(mark); }
  void abort(std::string const& reason, std::shared_ptr<void const> keep) override {
    link_->abort(reason, std::move(keep));
  }
  [[nodiscard]] bool aborted() const override { return link_->aborted(); }

 private:
  std::shared_ptr<RowLink> link_;
  Mortal const& mortal_;
};

enum class Kind : std::uint8_t { cpu, device };

// A worker's thread, until it dies or is asked to end.
class ThreadWorker {
 public:
  ThreadWorker(ExpertModelSpec const& model, MadeUpWeights const& source, HeldExperts const& held, Kind kind,
               std::string link_id, ThreadWire& wire, DispatchLimits const& limits, std::function<void()> on_death)
      : thread_([this, &model, &source, held, kind, link_id = std::move(link_id), &wire, limits,
                 on_death = std::move(on_death)] {
          try {
            live(model, source, held, kind, link_id, wire, limits);
          } catch (Died const&) {
          } catch (WorkerLoopError const& error) {
            why_ = error.what();
          }
          on_death();
        }) {}
  ~ThreadWorker() {
    gate_.set(ServingGate::Mode::stopped);
    thread_.join();
  }
  ThreadWorker(ThreadWorker const&) = delete;
  ThreadWorker& operator=(ThreadWorker const&) = delete;
  Mortal mortal;

 private:
  void live(ExpertModelSpec const& model, MadeUpWeights const& source, HeldExperts const& held, Kind kind,
            std::string const& link_id, ThreadWire& wire, DispatchLimits const& limits) {
    std::unique_ptr<Device> const device = kind == Kind::device ? open_device_on_host() : nullptr;
    ThreadPool pool(1);
    Exec const exec(Isa::scalar, pool, ExpertService::exec_limits(model, limits, kMaxRequests), device.get());
    ExpertStore store(model, held, source, pool, kIgnoreBytes, nullptr, device.get());
    ThreadTransport transport(ThreadTransport::Side::worker, {&wire});
    transport.before_send = [this] { mortal.pass(Point::before_header); };
    std::unique_ptr<WorkerLink> link;
    if (!link_id.empty()) {
      DispatchLayout const layout(model.layers[0].hidden, model.wire);
      link = std::make_unique<WorkerLink>(
          std::make_shared<MortalLink>(link_of(link_id, *device, LinkEnd::worker), mortal), *device,
          limits.max_rows * layout.row_bytes(), limits.max_entries * layout.row_bytes());
    }
    auto const placement = std::make_shared<ServedPlacement>(std::move(store), exec,
                                                             ExpertServiceOptions{.incarnation = Incarnation(1),
                                                                                  .epoch = kEpoch,
                                                                                  .wire = model.wire,
                                                                                  .limits = limits,
                                                                                  .max_messages = kMaxRequests,
                                                                                  .port = link.get()});
    WorkerLoop loop(transport, PeerId(0), placement, kMaxRequests, PollPause::yield, link.get());
    loop.run(gate_);
  }

  ServingGate gate_;
  std::string why_;
  std::thread thread_;
};

struct WorkerPlan {
  Kind kind = Kind::device;
  bool by_link = true;
  HeldExperts held;
};

class ThreadGroup final : public WorkerGroup {
 public:
  ThreadGroup(ExpertModelSpec const& model, MadeUpWeights const& source, std::vector<WorkerPlan> const& plans,
              DispatchLimits const& limits)
      : wires_(plans.size()), dead_(plans.size()), transport_(ThreadTransport::Side::coordinator, pointers()) {
    for (std::size_t w = 0; w < plans.size(); ++w) {
      std::string const id = plans[w].by_link ? make_nccl_id(*stand_in()) : "";
      peers_.push_back({.worker = WorkerId(static_cast<std::uint32_t>(w + 1)),
                        .incarnation = Incarnation(1),
                        .peer = PeerId(static_cast<std::uint32_t>(w)),
                        .epoch = kEpoch,
                        .held = std::make_shared<HeldExperts const>(plans[w].held),
                        .link_id = id});
      workers_.push_back(std::make_unique<ThreadWorker>(model, source, plans[w].held, plans[w].kind, id, wires_[w],
                                                        limits, [this, w] { bury(w); }));
    }
  }
  ~ThreadGroup() override { workers_.clear(); }

  [[nodiscard]] ThreadWorker& worker(std::size_t index) { return *workers_[index]; }
  [[nodiscard]] std::size_t num_by_link() const { return num_by_link_; }
  [[nodiscard]] std::string last_reason() const { return last_reason_; }

  [[nodiscard]] Transport& transport() override { return transport_; }
  [[nodiscard]] std::vector<WorkerPeer> members() override {
    std::vector<WorkerPeer> members;
    for (WorkerPeer const& peer : peers_)
      if (!dead(peer)) members.push_back(peer);
    return members;
  }
  void keep(std::shared_ptr<void const> memory) override { kept_.push_back(std::move(memory)); }
  [[nodiscard]] std::uint64_t version() const override { return version_; }
  [[nodiscard]] bool dead(WorkerPeer const& member) const override { return dead_[member.peer.value()]; }
  [[nodiscard]] std::string death_reason(WorkerPeer const& /*member*/) const override { return "it died"; }
  void declare_dead(WorkerPeer const& member, std::string const& reason) override {
    last_reason_ = reason;
    bury(member.peer.value());
  }
  void set_row_transport(WorkerPeer const& /*member*/, std::string const& how) override {
    if (how == "nccl") ++num_by_link_;
  }
  [[nodiscard]] std::size_t resident_bytes() const override { return 0; }
  void idle() override {}
  void wake() override {}

 private:
  std::vector<ThreadWire*> pointers() {
    std::vector<ThreadWire*> out;
    for (ThreadWire& wire : wires_) out.push_back(&wire);
    return out;
  }
  void bury(std::size_t w) {
    if (!dead_[w].exchange(true)) ++version_;
  }

  std::vector<ThreadWire> wires_;
  std::vector<std::atomic<bool>> dead_;
  std::atomic<std::uint64_t> version_ = 1;
  std::vector<WorkerPeer> peers_;
  std::vector<std::shared_ptr<void const>> kept_;
  ThreadTransport transport_;
  std::vector<std::unique_ptr<ThreadWorker>> workers_;
  std::size_t num_by_link_ = 0;
  std::string last_reason_;
};

Task exchange(FrameArena&, Experts& experts, MatrixView<float const> x, RoutingView routing, MatrixView<float> out) {
  auto const pending = experts.dispatch(3, x, routing);
  co_await experts.combine(pending, out);
}

class LinkedExpertsTest : public ::testing::TestWithParam<DType> {
 protected:
  // All of one kind, each its share.
  [[nodiscard]] std::vector<WorkerPlan> plans(std::size_t count, bool by_link) const {
    std::vector<WorkerPlan> out;
    for (HeldExperts& held : static_split(num_experts_of(model), count))
      out.push_back({.kind = Kind::device, .by_link = by_link, .held = std::move(held)});
    return out;
  }
  std::shared_ptr<ThreadGroup> group(std::vector<WorkerPlan> const& workers, std::size_t k) {
    return std::make_shared<ThreadGroup>(model, source, workers, dispatch_limits(model, kMaxTokens, k));
  }
  std::unique_ptr<RemoteExperts> experts(std::shared_ptr<ThreadGroup> const& workers, std::size_t k) {
    RemoteExpertsLimits limits{.experts_per_token = k, .max_tokens = kMaxTokens, .own_cache_bytes = 1U << 20};
    limits.expert_device = device.get();
    limits.make_link = [this](WorkerPeer const& peer) { return link_of(peer.link_id, *device, LinkEnd::coordinator); };
    return std::make_unique<RemoteExperts>(model, source, limits, exec, workers);
  }
  // Until so many links are ready: from then on rows go by them.
  static void connect(RemoteExperts& by, ThreadGroup& workers, std::size_t count) {
    while (workers.num_by_link() < count) by.progress();
  }

  struct Batch {
    AlignedBuffer<float> x;
    AlignedBuffer<float> out;
    std::size_t tokens;
    Routing routing;
    [[nodiscard]] RoutingView view() const {
      return {.experts = routing.experts, .weights = routing.weights, .experts_per_token = routing.experts_per_token};
    }
  };
  Batch batch(std::vector<float> const& x, Routing routing) {
    return {.x = AlignedBuffer<float>(std::span<float const>(x), device.get()),
            .out = AlignedBuffer<float>(x.size(), device.get()),
            .tokens = x.size() / hidden,
            .routing = std::move(routing)};
  }
  std::vector<float> result(Batch const& b) {
    std::vector<float> out(b.out.size());
    device->download(out.data(), b.out.data(), b.out.size_bytes());
    return out;
  }
  Task start(FrameArena& arena, Experts& by, Batch& b) {
    Task task = exchange(arena, by, {b.x.data(), b.tokens, hidden}, b.view(), {b.out.data(), b.tokens, hidden});
    task.start();
    return task;
  }
  std::vector<float> run(Experts& by, std::vector<float> const& x, Routing const& routing) {
    Batch b = batch(x, routing);
    FrameArena arena(std::size_t{64} << 10);
    Task const task = start(arena, by, b);
    while (!task.done()) by.progress();
    task.rethrow();
    return result(b);
  }

  ExpertModelSpec model = tiny_model(kExperts, GetParam());
  MadeUpWeights source;
  std::size_t hidden = model.layers[0].hidden;
  std::unique_ptr<Device> device = open_device_on_host();
  ThreadPool pool{1};
  Exec exec{
      Isa::scalar, pool, {.max_rows = kMaxTokens * kExperts, .max_columns = 24, .max_hidden = hidden}, device.get()};
  std::mt19937 random{5};
};

TEST_P(LinkedExpertsTest, TheBitsAreThoseByWayOfTheHost) {
  for (std::size_t const k : {std::size_t{1}, std::size_t{3}}) {
    auto const by_host = group(plans(2, false), k);
    auto const expected_of = experts(by_host, k);
    for (std::size_t const n : {1U, 2U, 3U}) {
      auto const workers = group(plans(n, true), k);
      auto const linked = experts(workers, k);
      connect(*linked, *workers, n);
      for (std::size_t const tokens : {1U, 2U, 7U, 33U}) {
        Routing const routing = test::random_routing(random, tokens, kExperts, k);
        auto const x = test::random_floats(random, tokens * hidden);
        auto const expected = run(*expected_of, x, routing);
        auto const before = linked->traffic().link_bytes_sent;
        ASSERT_TRUE(test::same_bits(run(*linked, x, routing), expected)) << n << " workers, " << tokens << " tokens";
        EXPECT_GE(linked->traffic().link_bytes_sent - before, tokens * hidden * size_of(GetParam()));
      }
      EXPECT_EQ(linked->recoveries().exchanges, 0U);
    }
    EXPECT_EQ(expected_of->traffic().link_bytes_sent, 0U);
  }
}

TEST_P(LinkedExpertsTest, AnExpertTwiceAndSlotsWithoutOne) {
  auto const by_host = group(plans(2, false), 3);
  auto const expected_of = experts(by_host, 3);
  auto const workers = group(plans(2, true), 3);
  auto const linked = experts(workers, 3);
  connect(*linked, *workers, 2);
  Routing const routing{.experts_per_token = 3,
                        .experts = {0, 0, 6, kNoExpert, 2, 2, kNoExpert, kNoExpert, kNoExpert, 5, 4, 6},
                        .weights = std::vector(12, 0.3F)};
  auto const x = test::random_floats(random, 4 * hidden);
  EXPECT_TRUE(test::same_bits(run(*linked, x, routing), run(*expected_of, x, routing)));
}

// Some by links, some by the host, one of them a processor.
TEST_P(LinkedExpertsTest, AMixedGroup) {
  auto mixed = plans(3, true);
  mixed[1].kind = Kind::cpu;
  mixed[1].by_link = false;
  auto by_host = mixed;
  for (WorkerPlan& plan : by_host) plan.by_link = false;
  auto const expected_group = group(by_host, 2);
  auto const expected_of = experts(expected_group, 2);
  auto const workers = group(mixed, 2);
  auto const linked = experts(workers, 2);
  connect(*linked, *workers, 2);
  for (std::size_t const tokens : {1U, 9U, 20U}) {
    Routing const routing = test::random_routing(random, tokens, kExperts, 2);
    auto const x = test::random_floats(random, tokens * hidden);
    ASSERT_TRUE(test::same_bits(run(*linked, x, routing), run(*expected_of, x, routing))) << tokens;
  }
  EXPECT_GT(linked->traffic().link_bytes_sent, 0U);
}

// The second's rows wait for the first's answers to be asked for: nothing here waits for anything there in a circle.
TEST_P(LinkedExpertsTest, TwoMicroBatchesInFlight) {
  auto const by_host = group(plans(2, false), 2);
  auto const expected_of = experts(by_host, 2);
  auto const workers = group(plans(2, true), 2);
  auto const linked = experts(workers, 2);
  connect(*linked, *workers, 2);
  for (int round = 0; round < 10; ++round) {
    auto const x_a = test::random_floats(random, 33 * hidden);
    auto const x_b = test::random_floats(random, 5 * hidden);
    Batch a = batch(x_a, test::random_routing(random, 33, kExperts, 2));
    Batch b = batch(x_b, test::random_routing(random, 5, kExperts, 2));
    FrameArena arena_a(std::size_t{64} << 10);
    FrameArena arena_b(std::size_t{64} << 10);
    Task const task_a = start(arena_a, *linked, a);
    Task const task_b = start(arena_b, *linked, b);
    while (!task_a.done() || !task_b.done()) linked->progress();
    ASSERT_TRUE(test::same_bits(result(a), run(*expected_of, x_a, a.routing)));
    ASSERT_TRUE(test::same_bits(result(b), run(*expected_of, x_b, b.routing)));
  }
}

TEST_P(LinkedExpertsTest, UntilItsLinkIsReadyAWorkersRowsGoByTheHost) {
  auto const by_host = group(plans(1, false), 2);
  auto const expected_of = experts(by_host, 2);
  auto const workers = group(plans(1, true), 2);
  auto const linked = experts(workers, 2);
  Routing const routing = test::random_routing(random, 5, kExperts, 2);
  auto const x = test::random_floats(random, 5 * hidden);
  auto const expected = run(*expected_of, x, routing);
  EXPECT_TRUE(test::same_bits(run(*linked, x, routing), expected));
  EXPECT_EQ(linked->traffic().link_bytes_sent, 0U);
  connect(*linked, *workers, 1);
  EXPECT_TRUE(test::same_bits(run(*linked, x, routing), expected));
  EXPECT_GT(linked->traffic().link_bytes_sent, 0U);
}

TEST_P(LinkedExpertsTest, AWorkerMayDieAnywhere) {
  auto const by_host = group(plans(2, false), 2);
  auto const expected_of = experts(by_host, 2);
  for (Point const point :
       {Point::before_rows, Point::behind_rows, Point::before_answer, Point::behind_answer, Point::before_header})
    for (std::size_t const victims : {1U, 2U}) {
      auto const workers = group(plans(2, true), 2);
      auto const linked = experts(workers, 2);
      connect(*linked, *workers, 2);
      for (std::size_t v = 0; v < victims; ++v) workers->worker(v).mortal.die_at(point);
      auto const x_a = test::random_floats(random, 20 * hidden);
      auto const x_b = test::random_floats(random, 9 * hidden);
      Batch a = batch(x_a, test::random_routing(random, 20, kExperts, 2));
      Batch b = batch(x_b, test::random_routing(random, 9, kExperts, 2));
      FrameArena arena_a(std::size_t{64} << 10);
      FrameArena arena_b(std::size_t{64} << 10);
      Task const task_a = start(arena_a, *linked, a);
      Task const task_b = start(arena_b, *linked, b);
      while (!task_a.done() || !task_b.done()) linked->progress();
      ASSERT_NO_THROW(task_a.rethrow());
      // Who runs its rows now has a device, too.
      auto const what = "point " + std::to_string(static_cast<int>(point)) + ", " + std::to_string(victims) + " die";
      ASSERT_TRUE(test::same_bits(result(a), run(*expected_of, x_a, a.routing))) << what;
      ASSERT_TRUE(test::same_bits(result(b), run(*expected_of, x_b, b.routing))) << what;
      EXPECT_EQ(workers->members().size(), 2 - victims) << what;
      EXPECT_GT(linked->recoveries().rows, 0U) << what;
      ASSERT_TRUE(test::same_bits(run(*linked, x_a, a.routing), run(*expected_of, x_a, a.routing))) << what;
    }
}

// A model may overflow; a worker that does so alone makes things up. Its rows are looked at where they are.
TEST_P(LinkedExpertsTest, InfinitiesAreTheModelsOrTheEndOfTheirWorker) {
  for (bool const model_overflows : {true, false}) {
    source.largest = 0.5F;
    std::vector<float> const x(2 * hidden, 0.25F);
    Routing const routing{.experts_per_token = 1, .experts = {2, 4}, .weights = {1, 1}};
    auto const by_host = group(plans(1, false), 1);
    auto const expected = run(*experts(by_host, 1), x, routing);
    source.largest = 1e30F;
    auto const workers = group(plans(2, true), 1);
    auto const linked = experts(workers, 1);
    connect(*linked, *workers, 2);  // they have loaded
    if (!model_overflows) source.largest = 0.5F;
    auto const out = run(*linked, x, routing);
    EXPECT_EQ(workers->members().size(), model_overflows ? 2U : 0U);
    EXPECT_NE(std::ranges::all_of(out, [](float v) { return std::isfinite(v); }), model_overflows);
    if (!model_overflows) {
      EXPECT_TRUE(test::same_bits(out, expected));
      EXPECT_NE(workers->last_reason().find("infinities"), std::string::npos) << workers->last_reason();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(WireDtypes, LinkedExpertsTest, ::testing::Values(DType::f32, DType::bf16),
                         [](auto const& tested) { return std::string(name_of(tested.param)); });

}  // namespace
}  // namespace expertmesh
