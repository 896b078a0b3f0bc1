// The states of a link, against a library that says what it is told to.
#include "common/transport/nccl_link.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <deque>
#include <future>
#include <map>
#include <thread>
#include <vector>

#include "common/base/aligned_buffer.h"
#include "device_on_host.h"
#include "queue_on_host.h"

namespace expertmesh {
namespace {

using cuda_on_host::QueueOnHost;
using std::chrono::milliseconds;

// Moves nothing. The n-th call, counted from 0, says what is planned for it.
class ScriptedNccl final : public NcclApi {
 public:
  std::map<std::size_t, NcclResult> plan;
  std::deque<NcclResult> async;              // of the next looks; then no error
  bool always_in_progress = false;           // when async has come to its end
  std::vector<std::string> calls;            // but looks for errors
  std::shared_future<void> transfers_end{};  // none: at once
  std::shared_future<void> abort_ends{};
  std::vector<std::span<std::byte>> registered;
  std::atomic<int> num_revoked = 0;
  std::atomic<int> num_aborted = 0;
  bool in_group = false;
  QueueOnHost* used = nullptr;

  [[nodiscard]] int version() const override { return kLeastNcclVersion; }
  NcclResult get_unique_id(NcclUniqueId* /*id*/) override { return called("ncclGetUniqueId"); }
  NcclResult comm_init_rank_config(NcclComm** comm, int /*num_ranks*/, NcclUniqueId const& /*id*/, int /*rank*/,
                                   NcclConfig* config) override {
    EXPECT_EQ(config->blocking, 0);
    NcclResult const result = called("ncclCommInitRankConfig");
    bool const made = result == NcclResult::success || result == NcclResult::in_progress;
    *comm = made ? reinterpret_cast<NcclComm*>(this) : nullptr;
    return result;
  }
  NcclResult comm_get_async_error(NcclComm* /*comm*/, NcclResult* error) override {
    *error = always_in_progress ? NcclResult::in_progress : NcclResult::success;
    if (!async.empty()) {
      *error = async.front();
      async.pop_front();
    }
    busy_ = *error == NcclResult::in_progress;
    return NcclResult::success;
  }
  NcclResult comm_register(NcclComm* /*comm*/, void* bytes, std::size_t count) override {
    registered.emplace_back(static_cast<std::byte*>(bytes), count);
    return called("ncclCommRegister");
  }
  NcclResult send(void const* /*bytes*/, std::size_t /*count*/, int /*peer*/, NcclComm* /*comm*/,
                  void* queue) override {
    hold(queue);
    return called("ncclSend");
  }
  NcclResult recv(void* /*bytes*/, std::size_t /*count*/, int /*peer*/, NcclComm* /*comm*/, void* queue) override {
    hold(queue);
    return called("ncclRecv");
  }
  NcclResult group_start() override {
    NcclResult const result = called("ncclGroupStart");
    in_group = result == NcclResult::success;
    return result;
  }
  NcclResult group_end() override {
    in_group = false;
    return called("ncclGroupEnd");
  }
  NcclResult comm_revoke(NcclComm* /*comm*/) override {
    ++num_revoked;
    return NcclResult::invalid_usage;  // is of no importance
  }
  NcclResult comm_abort(NcclComm* /*comm*/) override {
    EXPECT_EQ(num_revoked, 1);
    if (abort_ends.valid()) abort_ends.wait();
    ++num_aborted;
    return NcclResult::success;
  }
  [[nodiscard]] std::string error_text(NcclResult result) const override {
    return "text " + std::to_string(static_cast<int>(result));
  }

 private:
  NcclResult called(char const* name) {
    EXPECT_FALSE(busy_) << name << " while another call is in progress";
    std::size_t const index = calls.size();
    calls.emplace_back(name);
    NcclResult const result = plan.contains(index) ? plan[index] : NcclResult::success;
    busy_ = result == NcclResult::in_progress && !in_group;
    return result;
  }
  void hold(void* queue) {
    used = static_cast<QueueOnHost*>(queue);
    if (transfers_end.valid()) used->push([end = transfers_end] { end.wait(); });
  }
  bool busy_ = false;
};

class NcclLinkTest : public ::testing::Test {
 protected:
  std::unique_ptr<RowLink> make() {
    return make_nccl_link(nccl, {}, *device,
                          {.peer = "worker 3", .connect_time = milliseconds(100), .transfer_time = milliseconds(50)},
                          now);
  }
  template <class Done>
  bool poll_until(RowLink& link, Done const& done) {
    while (link.state() != RowLink::State::failed && !done()) link.poll(now);
    return link.state() != RowLink::State::failed;
  }
  bool become_ready(RowLink& link) {
    return poll_until(link, [&] { return link.state() == RowLink::State::ready; });
  }
  // What a leg does. Returns whether it came to its end.
  bool send_and_receive(RowLink& link) {
    if (!become_ready(link)) return false;
    link.send(rows.span().first(40));
    LinkMark const received = link.recv(rows.span().subspan(64, 40), DType::f32);
    if (!poll_until(link, [&] { return link.enqueued(); })) return false;
    link.hold_device();
    return poll_until(link, [&] { return link.done(received); });
  }

  std::shared_ptr<ScriptedNccl> nccl = std::make_shared<ScriptedNccl>();
  std::unique_ptr<Device> device = open_device_on_host();
  AlignedBuffer<std::byte> rows{1024, device.get()};
  RowLink::Time now{std::chrono::hours(1)};
};

std::vector<std::string> const kCalls{"ncclCommInitRankConfig", "ncclGroupStart", "ncclSend", "ncclRecv",
                                      "ncclGroupEnd",           "ncclSend",       "ncclRecv"};

TEST_F(NcclLinkTest, GreetsThenSendsAndReceives) {
  auto link = make();
  EXPECT_TRUE(send_and_receive(*link)) << link->failure();
  EXPECT_EQ(nccl->calls, kCalls);
  link.reset();
  EXPECT_EQ(nccl->num_aborted, 1);
}

TEST_F(NcclLinkTest, MemoryIsRegisteredOnceAndBeforeRowsAreThere) {
  for (NcclResult const result : {NcclResult::success, NcclResult::in_progress, NcclResult::invalid_argument}) {
    nccl = std::make_shared<ScriptedNccl>();
    nccl->plan[5] = result;  // without it rows take one more copy
    if (result == NcclResult::in_progress) nccl->async.assign(12, NcclResult::success);
    auto link = make();
    link->share(rows.span().first(40));
    link->share(rows.span().subspan(64, 40));
    EXPECT_TRUE(nccl->registered.empty()) << "there is no communicator yet";
    EXPECT_TRUE(send_and_receive(*link)) << link->failure();
    auto calls = kCalls;
    calls.insert(calls.begin() + 5, 2, "ncclCommRegister");
    EXPECT_EQ(nccl->calls, calls);
    ASSERT_EQ(nccl->registered.size(), 2U);
    EXPECT_EQ(nccl->registered[1].data(), rows.data() + 64);
    EXPECT_EQ(nccl->registered[1].size(), 40U);

    link->share(rows.span().subspan(512, 64));
    link->poll(now);
    ASSERT_EQ(nccl->registered.size(), 3U) << "while no rows are asked for";
    EXPECT_EQ(nccl->registered[2].data(), rows.data() + 512);
  }
}

TEST_F(NcclLinkTest, AnyCallMayFail) {
  for (std::size_t failing = 0; failing < kCalls.size(); ++failing)
    for (int code = 1; code <= 6; ++code) {
      nccl = std::make_shared<ScriptedNccl>();
      nccl->plan[failing] = static_cast<NcclResult>(code);
      auto link = make();
      ASSERT_FALSE(send_and_receive(*link)) << kCalls[failing];
      std::string const text = std::to_string(code);
      EXPECT_EQ(link->failure(), kCalls[failing] + ": text " + text + " (" + text + ") [worker 3]");
      EXPECT_FALSE(nccl->in_group) << "a group that was begun has to be ended";
      std::size_t const num_calls = nccl->calls.size();
      link->poll(now + milliseconds(1000));
      link->send(rows.span().first(40));
      link->recv(rows.span().first(40));
      EXPECT_EQ(nccl->calls.size(), num_calls) << "after its end";
      link.reset();
      EXPECT_EQ(nccl->num_aborted, failing == 0 ? 0 : 1) << kCalls[failing];
    }
}

TEST_F(NcclLinkTest, AnyCallMayBeInProgress) {
  for (std::size_t slow = 0; slow < kCalls.size(); ++slow)
    for (NcclResult const end : {NcclResult::success, NcclResult::remote_error}) {
      if (slow > 0 && slow < 4) continue;  // inside a group
      nccl = std::make_shared<ScriptedNccl>();
      nccl->plan[slow] = NcclResult::in_progress;
      std::deque<NcclResult> const async{NcclResult::in_progress, NcclResult::in_progress, NcclResult::in_progress,
                                         end};
      if (slow == 0) nccl->async = async;
      auto link = make();
      if (slow >= 5) {
        ASSERT_TRUE(become_ready(*link));
      }
      if (slow > 0) nccl->async = async;
      bool const good = send_and_receive(*link);
      EXPECT_EQ(good, end == NcclResult::success) << kCalls[slow] << ": " << link->failure();
      if (good) {
        EXPECT_EQ(nccl->calls, kCalls);
      } else {
        EXPECT_EQ(link->failure(), "ncclCommGetAsyncError: text 6 (6) [worker 3]") << kCalls[slow];
      }
    }
}

TEST_F(NcclLinkTest, APeerThatNeverComesIsGivenUp) {
  nccl->plan[0] = NcclResult::in_progress;
  nccl->always_in_progress = true;
  auto const link = make();
  now += milliseconds(99);
  link->poll(now);
  EXPECT_EQ(link->state(), RowLink::State::connecting);
  now += milliseconds(1);
  link->poll(now);
  EXPECT_EQ(link->state(), RowLink::State::failed);
  EXPECT_EQ(link->failure(), "NCCL made no connection within 100 ms [worker 3]");
}

TEST_F(NcclLinkTest, AGreetingThatIsNotAnsweredIsGivenUp) {
  std::promise<void> never;
  nccl->transfers_end = never.get_future().share();
  auto const link = make();
  link->poll(now + milliseconds(50));
  EXPECT_EQ(link->state(), RowLink::State::connecting);
  link->poll(now + milliseconds(100));
  EXPECT_EQ(link->failure(), "NCCL made no connection within 100 ms [worker 3]");
  never.set_value();  // as the abort has it
}

TEST_F(NcclLinkTest, ATransferThatHangsIsGivenUp) {
  auto const link = make();
  ASSERT_TRUE(become_ready(*link));
  std::promise<void> never;
  nccl->transfers_end = never.get_future().share();
  LinkMark const mark = link->recv(rows.span().first(40));
  link->poll(now);
  link->poll(now + milliseconds(49));
  EXPECT_EQ(link->state(), RowLink::State::ready);
  EXPECT_FALSE(link->done(mark));
  link->poll(now + milliseconds(99));
  EXPECT_EQ(link->failure(), "a transfer of 40 bytes was not done within 50 ms [worker 3]");
  EXPECT_FALSE(link->done(mark));
  never.set_value();
}

// A recording of what a leg does, and its launch.
TEST_F(NcclLinkTest, TransfersOfARecordingAreUnderWayWhenItIsLaunched) {
  for (NcclResult const result : {NcclResult::success, NcclResult::in_progress}) {
    nccl = std::make_shared<ScriptedNccl>();
    nccl->plan[5] = nccl->plan[6] = result;
    auto const link = make();
    ASSERT_TRUE(become_ready(*link));
    if (result == NcclResult::in_progress)
      nccl->async = {NcclResult::in_progress, NcclResult::success, NcclResult::in_progress};
    link->share(rows.span().subspan(512, 64));
    device->begin_recording();
    link->send(rows.span().first(40));
    link->recv(rows.span().subspan(64, 40));
    link->poll(now + milliseconds(1000));
    EXPECT_TRUE(nccl->registered.empty()) << "in a recording";
    link->hold_device();
    EXPECT_EQ(link->under_way(), 0U);
    EXPECT_TRUE(link->enqueued());
    auto const graph = device->end_recording();
    EXPECT_EQ(nccl->calls, kCalls);
    std::promise<void> over;
    nccl->used->push([end = over.get_future().share()] { end.wait(); });
    link->poll(now);  // registers
    for (int i = 0; i < 2; ++i) {
      link->hold_device();
      graph->launch();
      link->launched();
    }
    EXPECT_EQ(link->under_way(), 2U);
    EXPECT_EQ(nccl->calls.size(), kCalls.size() + 1) << "the host has nothing to say to the library";
    over.set_value();
    EXPECT_TRUE(poll_until(*link, [&] { return link->under_way() == 0; })) << link->failure();
  }
}

TEST_F(NcclLinkTest, ACallThatFailsInARecordingEndsTheLinkAndTheRecording) {
  for (std::size_t const failing : {5U, 6U}) {
    nccl = std::make_shared<ScriptedNccl>();
    nccl->plan[failing] = NcclResult::system_error;
    auto const link = make();
    ASSERT_TRUE(become_ready(*link));
    device->begin_recording();
    link->send(rows.span().first(40));
    link->recv(rows.span().subspan(64, 40));
    link->hold_device();
    EXPECT_THROW(static_cast<void>(device->end_recording()), DeviceError) << "the queue was left in the recording";
    EXPECT_EQ(link->failure(), kCalls[failing] + ": text 2 (2) [worker 3]");
    link->launched();
    EXPECT_EQ(nccl->calls.size(), failing + 1);
  }
}

TEST_F(NcclLinkTest, AGraphThatHangsIsGivenUp) {
  auto const link = make();
  ASSERT_TRUE(become_ready(*link));
  device->begin_recording();
  std::promise<void> never;
  nccl->transfers_end = never.get_future().share();
  link->recv(rows.span().first(40));
  link->hold_device();
  auto graph = device->end_recording();
  link->hold_device();
  graph->launch();
  LinkMark const mark = link->launched();
  link->poll(now);
  link->poll(now + milliseconds(49));
  EXPECT_EQ(link->state(), RowLink::State::ready);
  link->poll(now + milliseconds(99));
  EXPECT_EQ(link->failure(), "a step was not done within 50 ms [worker 3]");
  EXPECT_FALSE(link->done(mark));
  graph.reset();  // on its way
  never.set_value();
}

// The host was busy elsewhere: what was done in the meantime is no reason to give up.
TEST_F(NcclLinkTest, WhoLooksLateFindsWhatIsDone) {
  auto const link = make();
  ASSERT_TRUE(become_ready(*link));
  std::promise<void> end;
  nccl->transfers_end = end.get_future().share();
  LinkMark const first = link->recv(rows.span().first(40));
  LinkMark const second = link->recv(rows.span().subspan(40, 40));
  link->poll(now);
  now += milliseconds(49);
  link->poll(now);
  end.set_value();
  nccl->used->finish();
  now += milliseconds(1000);
  EXPECT_TRUE(poll_until(*link, [&] { return link->done(first) && link->done(second); })) << link->failure();
}

TEST_F(NcclLinkTest, InfinitiesAreFoundWhereTheyAre) {
  auto const link = make();
  ASSERT_TRUE(become_ready(*link));
  std::vector<float> numbers(256, 1.0F);
  numbers[20] = -INFINITY;
  numbers[41] = std::nanf("");
  device->upload(rows.data(), numbers.data(), 1024);
  auto const found = [&](std::size_t first, std::size_t count) {
    LinkMark const mark = link->recv(rows.span().subspan(4 * first, 4 * count), DType::f32);
    EXPECT_TRUE(poll_until(*link, [&] { return link->done(mark); }));
    return link->found_infinities(mark);
  };
  EXPECT_FALSE(found(0, 20));
  EXPECT_TRUE(found(0, 21));
  EXPECT_FALSE(found(21, 20));
  EXPECT_TRUE(found(41, 1));
  EXPECT_TRUE(found(0, 256));
  EXPECT_FALSE(found(42, 214));
}

TEST_F(NcclLinkTest, AnAbortThatTakesLongHoldsNobodyUpAndKeepsTheMemory) {
  std::promise<void> end;
  nccl->abort_ends = end.get_future().share();
  auto link = make();
  ASSERT_TRUE(become_ready(*link));
  auto memory = std::make_shared<int>(1);
  link->abort("the worker died", memory);
  std::weak_ptr<int> const kept = memory;
  memory.reset();
  EXPECT_EQ(link->failure(), "the worker died");
  link->poll(now);
  EXPECT_FALSE(link->aborted());
  EXPECT_FALSE(kept.expired());
  end.set_value();
  while (!link->aborted()) std::this_thread::yield();
  EXPECT_TRUE(kept.expired());
  link.reset();
  EXPECT_EQ(nccl->num_aborted, 1);
}

TEST_F(NcclLinkTest, AnAbortInTheMiddleOfConnecting) {
  nccl->plan[0] = NcclResult::in_progress;
  nccl->always_in_progress = true;
  auto const link = make();
  link->abort("the worker died", nullptr);
  link->poll(now);
  EXPECT_EQ(link->failure(), "the worker died");
  while (!link->aborted()) std::this_thread::yield();
  EXPECT_EQ(nccl->num_aborted, 1);
}

}  // namespace
}  // namespace expertmesh
