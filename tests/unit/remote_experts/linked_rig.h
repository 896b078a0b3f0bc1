// Coordinators and workers whose rows go by links between emulated devices, through the library that stands in for
// NCCL: every worker is a thread with a device of its own that runs the real loop.
#pragma once
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "common/base/task.h"
#include "common/protocol/step_layout.h"
#include "common/transport/nccl_link.h"
#include "coordinator/cluster/static_split.h"
#include "coordinator/experts/remote_experts.h"
#include "device_on_host.h"
#include "tests/support/tiny_experts.h"
#include "tests/unit/remote_experts/thread_transport.h"
#include "worker/worker_link.h"
#include "worker/worker_loop.h"

namespace expertmesh::test {

constexpr std::size_t kExperts = 7;
constexpr std::size_t kMaxTokens = 33;
constexpr std::size_t kMaxRequests = 2;
constexpr PlacementEpoch kEpoch{1};
inline auto const kIgnoreBytes = [](std::size_t, std::size_t) {};

inline std::shared_ptr<NcclApi> stand_in() {
  static std::shared_ptr<NcclApi> const api = [] {
    setenv("EXPERTMESH_NCCL", EM_NCCL_ON_HOST, 1);
    return load_nccl();
  }();
  return api;
}

inline std::shared_ptr<RowLink> link_of(std::string const& id, Device& device, LinkEnd end) {
  return make_nccl_link(stand_in(), nccl_id_of(id).value(), device,
                        {.end = end,
                         .peer = "the other",
                         .connect_time = std::chrono::minutes(5),
                         .transfer_time = std::chrono::minutes(5)},
                        std::chrono::steady_clock::now());
}

// Where a worker may die.
enum class Point : std::uint8_t {
  never,
  before_rows,
  behind_rows,
  before_answer,
  behind_answer,
  before_header,
  before_launch,
  behind_launch
};
struct Died {};
class Mortal {
 public:
  // When it has passed the point so many times.
  void die_at(Point point, std::size_t passed = 0) {
    left_ = passed;
    point_ = point;
  }
  void pass(Point point) const {
    if (point_ == point && left_-- == 0) throw Died();
  }

 private:
  std::atomic<Point> point_ = Point::never;
  mutable std::atomic<std::size_t> left_ = 0;
};

class MortalLink final : public RowLink {
 public:
  MortalLink(std::shared_ptr<RowLink> link, Mortal const& mortal) : link_(std::move(link)), mortal_(mortal) {}
  [[nodiscard]] State state() const override { return link_->state(); }
  [[nodiscard]] std::string failure() const override { return link_->failure(); }
  void poll(Time now) override { link_->poll(now); }
  void share(std::span<std::byte> memory) override { link_->share(memory); }
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
  void hold_device() override {
    mortal_.pass(Point::before_launch);
    link_->hold_device();
  }
  LinkMark launched() override {
    LinkMark const mark = link_->launched();
    mortal_.pass(Point::behind_launch);
    return mark;
  }
  [[nodiscard]] std::size_t under_way() const override { return link_->under_way(); }
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
    ExpertStore store(model, held, source, pool, kIgnoreBytes, nullptr, {.device = device.get()});
    ThreadTransport transport(ThreadTransport::Side::worker, {&wire});
    transport.before_send = [this] { mortal.pass(Point::before_header); };
    std::unique_ptr<WorkerLink> link;
    if (!link_id.empty()) {
      DispatchLayout const layout(model.layers[0].hidden, model.wire);
      link = std::make_unique<WorkerLink>(
          std::make_shared<MortalLink>(link_of(link_id, *device, LinkEnd::worker), mortal), *device,
          most_step_out_bytes(limits, layout.hidden(), model.wire), limits.max_entries * layout.row_bytes());
    }
    auto const placement = std::make_shared<ServedPlacement>(
        std::move(store), exec,
        ExpertServiceOptions{
            .incarnation = Incarnation(1), .epoch = kEpoch, .wire = model.wire, .limits = limits, .port = link.get()});
    WorkerLoop loop(transport, bell_, {.pause = PollPause::sleep});  // more threads than cores
    loop.add(std::make_shared<CoordinatorLane>(
        CoordinatorLaneOptions{.peer = PeerId(0),
                               .max_requests = kMaxRequests,
                               .link = link.get(),
                               .on_failure = [this](std::string const& why) { why_ = why; }},
        gate_, placement));
    loop.run(WorkerLoop::WhenEmpty::end);
  }

  Doorbell bell_;
  ServingGate gate_{bell_};
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

inline Task exchange(FrameArena&, Experts& experts, std::uint32_t layer, MatrixView<float const> x, RoutingView routing,
                     MatrixView<float> out) {
  auto const pending = experts.dispatch(layer, x, routing);
  co_await experts.combine(pending, out);
}

class LinkedRig : public ::testing::TestWithParam<DType> {
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
  std::unique_ptr<RemoteExperts> experts(std::shared_ptr<ThreadGroup> const& workers, std::size_t k,
                                         std::size_t static_bytes = 0) {
    RemoteExpertsLimits limits{.experts_per_token = k, .max_tokens = kMaxTokens, .own_cache_bytes = 1U << 20};
    limits.static_bytes = static_bytes;
    limits.expert_device = device.get();
    limits.make_link = [this](WorkerPeer const& peer) { return link_of(peer.link_id, *device, LinkEnd::coordinator); };
    return std::make_unique<RemoteExperts>(model, source, limits, exec, workers);
  }
  // Until so many links are ready: from then on rows go by them.
  static void connect(RemoteExperts& by, ThreadGroup& workers, std::size_t count) {
    while (workers.num_by_link() < count) look(by);
  }
  // And gives way: there are more threads than cores.
  static void look(RemoteExperts& by) {
    by.progress();
    pause_polling(PollPause::sleep);
  }

  struct Batch {
    AlignedBuffer<float> x;
    AlignedBuffer<float> out;
    std::size_t tokens;
    Routing routing;
    AlignedBuffer<std::uint32_t> device_experts;
    AlignedBuffer<float> device_weights;
    [[nodiscard]] RoutingView view() const {
      return {.experts = routing.experts,
              .weights = routing.weights,
              .experts_per_token = routing.experts_per_token,
              .device_experts = device_experts.span(),
              .device_weights = device_weights.span()};
    }
  };
  Batch batch(std::vector<float> const& x, Routing const& routing) {
    return {
        .x = AlignedBuffer<float>(std::span<float const>(x), device.get()),
        .out = AlignedBuffer<float>(x.size(), device.get()),
        .tokens = x.size() / hidden,
        .routing = routing,
        .device_experts = AlignedBuffer<std::uint32_t>(std::span<std::uint32_t const>(routing.experts), device.get()),
        .device_weights = AlignedBuffer<float>(std::span<float const>(routing.weights), device.get())};
  }
  std::vector<float> result(Batch const& b) {
    std::vector<float> out(b.out.size());
    device->download(out.data(), b.out.data(), b.out.size_bytes());
    return out;
  }
  Task start(FrameArena& arena, Experts& by, Batch& b, std::uint32_t layer = 3) {
    Task task = exchange(arena, by, layer, {b.x.data(), b.tokens, hidden}, b.view(), {b.out.data(), b.tokens, hidden});
    task.start();
    return task;
  }
  std::vector<float> run(Experts& by, std::vector<float> const& x, Routing const& routing, std::uint32_t layer = 3) {
    Batch b = batch(x, routing);
    FrameArena arena(std::size_t{64} << 10);
    Task const task = start(arena, by, b, layer);
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

}  // namespace expertmesh::test
