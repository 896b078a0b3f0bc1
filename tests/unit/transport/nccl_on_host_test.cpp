// Links between real processes, through the library that stands in for NCCL.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <numeric>
#include <thread>
#include <vector>

#include "common/base/aligned_buffer.h"
#include "common/transport/nccl_link.h"
#include "device_on_host.h"

namespace expertmesh {
namespace {

using std::chrono::seconds;

std::shared_ptr<NcclApi> stand_in() {
  setenv("EXPERTMESH_NCCL", EM_NCCL_ON_HOST, 1);
  auto api = load_nccl();
  unsetenv("EXPERTMESH_NCCL");
  return api;
}

RowLink::Time now() {
  return std::chrono::steady_clock::now();
}

// One end with its device.
struct End {
  End(std::shared_ptr<NcclApi> const& api, std::string const& id, LinkEnd end)
      : link(make_nccl_link(
            api, nccl_id_of(id).value(), *device,
            {.end = end, .peer = "the other", .connect_time = seconds(60), .transfer_time = seconds(60)}, now())) {}
  template <class Done>
  bool poll_until(Done const& done) const {
    while (link->state() != RowLink::State::failed && !done()) {
      link->poll(now());
      std::this_thread::yield();
    }
    return link->state() != RowLink::State::failed;
  }
  [[nodiscard]] bool ready() const {
    return poll_until([&] { return link->state() == RowLink::State::ready; });
  }
  [[nodiscard]] bool wait(LinkMark mark) const {
    return poll_until([&] { return link->done(mark); });
  }

  std::unique_ptr<Device> device = open_device_on_host();
  AlignedBuffer<std::byte> out{std::size_t{1} << 20, device.get()};
  AlignedBuffer<std::byte> in{std::size_t{1} << 20, device.get()};
  std::unique_ptr<RowLink> link;
};

// A worker in a process of its own: sends back what it gets, in turn, each word plus one.
class OtherProcess {
 public:
  explicit OtherProcess(std::function<int()> const& body) : pid_(fork()) {
    if (pid_ == 0) _exit(body());
  }
  ~OtherProcess() {
    kill_it();
    if (pid_ > 0) waitpid(pid_, nullptr, 0);
  }
  OtherProcess(OtherProcess const&) = delete;
  OtherProcess& operator=(OtherProcess const&) = delete;
  void kill_it() const {
    if (pid_ > 0) kill(pid_, SIGKILL);
  }
  int exit_code() {
    int status = -1;
    waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_;
};

std::vector<std::uint32_t> words(std::size_t count, std::uint32_t first) {
  std::vector<std::uint32_t> out(count);
  std::iota(out.begin(), out.end(), first);
  return out;
}

constexpr std::size_t kSizes[] = {1, 7, 64, 1000, 262144};

int echo(std::shared_ptr<NcclApi> const& api, std::string const& id, std::size_t rounds) {
  End const end(api, id, LinkEnd::worker);
  if (!end.ready()) return 2;
  for (std::size_t round = 0; round < rounds; ++round) {
    std::size_t const bytes = 4 * kSizes[round % std::size(kSizes)];
    auto& in = const_cast<AlignedBuffer<std::byte>&>(end.in);
    if (!end.wait(end.link->recv(in.span().first(bytes)))) return 3;
    std::vector<std::uint32_t> got(bytes / 4);
    end.device->download(got.data(), in.data(), bytes);
    for (std::uint32_t& word : got) ++word;
    end.device->upload(in.data(), got.data(), bytes);
    if (!end.wait(end.link->send(in.span().first(bytes)))) return 4;
  }
  return 0;
}

TEST(NcclOnHost, RowsGoToAnotherProcessAndComeBack) {
  auto const api = stand_in();
  std::string const id = make_nccl_id(*api);
  OtherProcess other([&] { return echo(api, id, 20); });
  End end(api, id, LinkEnd::coordinator);
  ASSERT_TRUE(end.ready()) << end.link->failure();
  for (std::size_t round = 0; round < 20; ++round) {
    std::size_t const count = kSizes[round % std::size(kSizes)];
    auto const sent = words(count, static_cast<std::uint32_t>(round));
    end.device->upload(end.out.data(), sent.data(), 4 * count);
    end.link->send(end.out.span().first(4 * count));
    ASSERT_TRUE(end.wait(end.link->recv(end.in.span().first(4 * count)))) << end.link->failure();
    std::vector<std::uint32_t> got(count);
    end.device->download(got.data(), end.in.data(), 4 * count);
    ASSERT_EQ(got, words(count, static_cast<std::uint32_t>(round + 1)));
  }
  EXPECT_EQ(other.exit_code(), 0);
}

// Its device goes on with what came: nobody waits for it on the host.
TEST(NcclOnHost, TheDeviceWaitsForRowsThatAreUnderWay) {
  auto const api = stand_in();
  std::string const id = make_nccl_id(*api);
  OtherProcess const other([&] { return echo(api, id, 4); });
  End end(api, id, LinkEnd::coordinator);
  ASSERT_TRUE(end.ready()) << end.link->failure();
  for (std::size_t round = 0; round < 4; ++round) {
    std::size_t const bytes = 4 * kSizes[round];
    auto const sent = words(kSizes[round], 5);
    end.device->upload(end.out.data(), sent.data(), bytes);
    end.link->send(end.out.span().first(bytes));
    end.link->recv(end.in.span().first(bytes));
    ASSERT_TRUE(end.link->enqueued());
    end.link->hold_device();
    std::vector<std::uint32_t> got(kSizes[round]);
    end.device->download(got.data(), end.in.data(), bytes);
    ASSERT_EQ(got, words(kSizes[round], 6));
  }
}

TEST(NcclOnHost, AProcessThatIsKilledIsMissedAndLetGoOf) {
  for (bool const mid_transfer : {false, true}) {
    auto const api = stand_in();
    std::string const id = make_nccl_id(*api);
    OtherProcess const other([&] { return echo(api, id, 1000); });
    End end(api, id, LinkEnd::coordinator);
    ASSERT_TRUE(end.ready()) << end.link->failure();
    if (mid_transfer) {
      end.link->recv(end.in.span().first(4));  // it waits for ours
      end.link->poll(now());
    }
    other.kill_it();
    if (!mid_transfer) end.link->recv(end.in.span().first(4));
    EXPECT_FALSE(end.poll_until([] { return false; }));
    EXPECT_NE(end.link->failure().find("remote process exited"), std::string::npos) << end.link->failure();
    end.link->abort("", nullptr);
    while (!end.link->aborted()) std::this_thread::yield();
  }
}

TEST(NcclOnHost, AProcessThatDiesBeforeItComes) {
  auto const api = stand_in();
  std::string const id = make_nccl_id(*api);
  OtherProcess other([&] {
    auto const device = open_device_on_host();
    NcclComm* comm = nullptr;
    NcclConfig config;
    config.blocking = 0;
    api->comm_init_rank_config(&comm, 2, nccl_id_of(id).value(), 1, &config);
    NcclResult error = NcclResult::in_progress;
    while (error == NcclResult::in_progress) api->comm_get_async_error(comm, &error);
    return 0;  // connected, and gone
  });
  End const end(api, id, LinkEnd::coordinator);
  EXPECT_FALSE(end.ready());
  EXPECT_EQ(other.exit_code(), 0);
}

TEST(NcclOnHost, SizesThatDifferAreAnError) {
  auto const api = stand_in();
  std::string const id = make_nccl_id(*api);
  OtherProcess const other([&] { return echo(api, id, 1); });
  End end(api, id, LinkEnd::coordinator);
  ASSERT_TRUE(end.ready()) << end.link->failure();
  EXPECT_FALSE(end.wait(end.link->send(end.out.span().first(8))));
}

}  // namespace
}  // namespace expertmesh
