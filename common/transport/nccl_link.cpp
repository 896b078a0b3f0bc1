#include "common/transport/nccl_link.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <thread>
#include <utility>
#include <vector>

#include "common/base/aligned_buffer.h"
#include "common/base/check.h"
#include "common/base/hexadecimal.h"
#include "common/base/log.h"

namespace expertmesh {
namespace {

// Between two looks, that counts as waiting: who was busy elsewhere for longer has missed nothing yet.
constexpr std::chrono::seconds kMostBetweenLooks{1};
constexpr std::chrono::seconds kRevokeTime{1};  // for a library's thread that waits for nobody
constexpr std::size_t kGreetingBytes = 256;     // NCCL makes its connections when something passes for the first time

class NcclLink final : public RowLink {
 public:
  NcclLink(std::shared_ptr<NcclApi> api, NcclUniqueId const& id, Device& device, NcclLinkOptions const& options,
           Time now)
      : api_(std::move(api)),
        options_(options),
        greeting_(2 * kGreetingBytes, &device),
        queue_(device.make_link_queue()),  // the thread's device is this one from here on
        last_look_(now) {
    NcclConfig config;
    config.blocking = 0;
    check("ncclCommInitRankConfig", api_->comm_init_rank_config(&comm_, 2, id, static_cast<int>(options.end), &config));
    poll(now);
  }
  ~NcclLink() override {
    abort("it was closed", nullptr);
    if (aborter_.joinable()) aborter_.join();
  }
  NcclLink(NcclLink const&) = delete;
  NcclLink& operator=(NcclLink const&) = delete;

  [[nodiscard]] State state() const override {
    if (!failure_.empty()) return State::failed;
    return phase_ == Phase::ready ? State::ready : State::connecting;
  }
  [[nodiscard]] std::string failure() const override { return failure_; }

  void poll(Time now) override {
    if (!failure_.empty() || queue_->is_recording()) return;
    waited_ += std::min<Time::duration>(now - std::exchange(last_look_, now), kMostBetweenLooks);
    look_for_errors();
    if (failure_.empty() && phase_ != Phase::ready) connect();
    if (failure_.empty() && phase_ == Phase::ready) register_shared();
    if (failure_.empty() && phase_ == Phase::ready) transfer();
  }

  void share(std::span<std::byte> memory) override { shared_.push_back(memory); }

  LinkMark send(std::span<std::byte const> rows) override {
    // What is sent is only read.
    return ask({.sends = true, .rows = {const_cast<std::byte*>(rows.data()), rows.size()}, .type = std::nullopt});
  }
  LinkMark recv(std::span<std::byte> rows, std::optional<DType> type) override {
    return ask({.sends = false, .rows = rows, .type = type});
  }
  [[nodiscard]] bool enqueued() const override { return enqueued_ == asked_; }
  void hold_device() override {
    EM_CHECK(enqueued(), "transfers that are not in the queue yet");
    if (failure_.empty()) queue_->hold_device();
  }
  LinkMark launched() override {
    EM_CHECK(enqueued() && asked_ - done_ < kMostUnderWay, asked_ - done_ << " transfers under way");
    if (!failure_.empty()) return LinkMark(asked_ + 1);
    std::size_t const next = ++asked_ % LinkQueue::kMarks;
    transfers_[next] = {};
    queue_->follow_device();
    queue_->set(next);
    ++enqueued_;
    return LinkMark(asked_);
  }

  [[nodiscard]] std::size_t under_way() const override { return asked_ - done_; }
  [[nodiscard]] bool done(LinkMark mark) const override { return mark.value() <= done_; }
  [[nodiscard]] bool found_infinities(LinkMark mark) const override {
    EM_CHECK(done(mark) && asked_ - mark.value() < LinkQueue::kMarks, "mark " << mark << " of " << asked_);
    return queue_->found_infinities(mark.value() % LinkQueue::kMarks);
  }

  void abort(std::string const& reason, std::shared_ptr<void const> keep) override {
    if (failure_.empty()) failure_ = reason.empty() ? "it was aborted" : reason;
    if (std::exchange(told_to_abort_, true)) return;
    aborter_ = std::thread([this, keep = std::move(keep)]() mutable {
      if (comm_) {
        if (api_->comm_revoke(comm_) == NcclResult::in_progress) finish_revoking();
        static_cast<void>(api_->comm_abort(comm_));  // nobody is left to be told what comes of it
      }
      keep.reset();
      aborted_.store(true, std::memory_order_release);
    });
  }
  [[nodiscard]] bool aborted() const override { return aborted_.load(std::memory_order_acquire); }

 private:
  enum class Phase : std::uint8_t { initialising, greeting, ready };
  struct Transfer {
    bool sends = false;
    std::span<std::byte> rows;  // empty: a graph with transfers in it
    std::optional<DType> type;
  };

  // Its last act takes back what tells the library's threads to stop: it must not come after what the abort tells them.
  void finish_revoking() {
    auto const deadline = std::chrono::steady_clock::now() + kRevokeTime;
    NcclResult state = NcclResult::in_progress;
    while (state == NcclResult::in_progress && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
      if (api_->comm_get_async_error(comm_, &state) != NcclResult::success) return;
    }
  }

  void fail(std::string const& why) { failure_ = why + " [" + options_.peer + "]"; }

  // What a call has said. Whatever is in progress then has to end before the next call.
  void check(char const* call, NcclResult result) {
    if (result == NcclResult::in_progress)
      in_progress_ = true;
    else if (result != NcclResult::success)
      failure_ = NcclError(call, static_cast<int>(result), api_->error_text(result), options_.peer).what();
  }

  void look_for_errors() {
    if (phase_ == Phase::ready && done_ == asked_ && !in_progress_) return;  // nobody waits
    NcclResult error = NcclResult::success;
    NcclResult const result = api_->comm_get_async_error(comm_, &error);
    in_progress_ = false;
    check("ncclCommGetAsyncError", result != NcclResult::success ? result : error);
  }

  void connect() {
    if (!in_progress_ && phase_ == Phase::initialising) greet();
    if (failure_.empty() && !in_progress_ && phase_ == Phase::greeting) {
      if (!std::exchange(greeted_, true)) queue_->set(0);
      if (queue_->done(0)) phase_ = Phase::ready;
    }
    if (failure_.empty() && phase_ != Phase::ready && waited_ >= options_.connect_time)
      fail("NCCL made no connection within " + std::to_string(options_.connect_time.count()) + " ms");
  }

  // What cannot be registered is copied.
  void register_shared() {
    while (!in_progress_ && num_registered_ < shared_.size()) {
      std::span<std::byte> const memory = shared_[num_registered_++];
      NcclResult const result = api_->comm_register(comm_, memory.data(), memory.size());
      if (result == NcclResult::in_progress)
        in_progress_ = true;
      else if (result != NcclResult::success)
        spdlog::warn("rows are copied once more on their way: ncclCommRegister: {} [{}]", api_->error_text(result),
                     options_.peer);
    }
  }

  // Something there and back, so that the first rows find all connections made.
  void greet() {
    phase_ = Phase::greeting;
    int const peer = 1 - static_cast<int>(options_.end);
    queue_->follow_device();  // the greeting is zero
    check("ncclGroupStart", api_->group_start());
    if (!failure_.empty()) return;
    check("ncclSend", api_->send(greeting_.data(), kGreetingBytes, peer, comm_, queue_->handle()));
    if (failure_.empty())
      check("ncclRecv", api_->recv(greeting_.data() + kGreetingBytes, kGreetingBytes, peer, comm_, queue_->handle()));
    std::string const failure = failure_;
    in_progress_ = false;  // the group's end says what has become of them
    check("ncclGroupEnd", api_->group_end());
    if (!failure.empty()) failure_ = failure;
  }

  LinkMark ask(Transfer const& transfer) {
    EM_CHECK(phase_ == Phase::ready || !failure_.empty(), "the link is not ready");
    static_assert(kMostUnderWay < LinkQueue::kMarks);
    EM_CHECK(!transfer.rows.empty() && asked_ - done_ < kMostUnderWay,
             transfer.rows.size() << " bytes, " << asked_ - done_ << " transfers under way");
    if (!failure_.empty()) return LinkMark(asked_ + 1);
    if (queue_->is_recording()) {
      record(transfer);
      return LinkMark(asked_);
    }
    transfers_[++asked_ % LinkQueue::kMarks] = transfer;
    enqueue();
    return LinkMark(asked_);
  }

  void record(Transfer const& transfer) {
    EM_CHECK(enqueued() && !transfer.type, "recorded behind what is not in the queue, or with a look at its rows");
    finish_call();
    if (!failure_.empty()) return;
    queue_->follow_device();
    call(transfer);
    finish_call();
  }
  // What is in progress is the work of a thread of the library, which waits for nobody.
  void finish_call() {
    auto const deadline = std::chrono::steady_clock::now() + options_.transfer_time;
    while (in_progress_ && failure_.empty()) {
      look_for_errors();
      if (in_progress_ && std::chrono::steady_clock::now() >= deadline)
        fail("NCCL's call came to no end in a recording");
    }
  }

  void call(Transfer const& transfer) {
    int const peer = 1 - static_cast<int>(options_.end);
    if (transfer.sends)
      check("ncclSend", api_->send(transfer.rows.data(), transfer.rows.size(), peer, comm_, queue_->handle()));
    else
      check("ncclRecv", api_->recv(transfer.rows.data(), transfer.rows.size(), peer, comm_, queue_->handle()));
  }

  // One behind the other: a call that is in progress has to end before the next one.
  void enqueue() {
    while (failure_.empty() && !in_progress_ && enqueued_ < asked_) {
      std::size_t const next = (enqueued_ + 1) % LinkQueue::kMarks;
      Transfer const& transfer = transfers_[next];
      if (!std::exchange(called_, true)) {
        if (transfer.sends) queue_->follow_device();
        call(transfer);
        if (!failure_.empty() || in_progress_) return;
      }
      if (transfer.type)
        queue_->look_for_infinities(*transfer.type, transfer.rows.data(),
                                    transfer.rows.size() / size_of(*transfer.type));
      queue_->set(next);
      called_ = false;
      ++enqueued_;
    }
  }

  void transfer() {
    std::uint64_t const before = enqueued_ + done_;
    enqueue();
    while (failure_.empty() && done_ < enqueued_ && queue_->done((done_ + 1) % LinkQueue::kMarks)) ++done_;
    if (done_ == asked_ || enqueued_ + done_ != before)
      waited_ = {};
    else if (failure_.empty() && waited_ >= options_.transfer_time)
      fail(text_of(transfers_[(done_ + 1) % LinkQueue::kMarks]) + " was not done within " +
           std::to_string(options_.transfer_time.count()) + " ms");
  }

  static std::string text_of(Transfer const& transfer) {
    if (transfer.rows.empty()) return "a step";
    return "a transfer of " + std::to_string(transfer.rows.size()) + " bytes";
  }

  std::shared_ptr<NcclApi> const api_;
  NcclLinkOptions const options_;
  AlignedBuffer<std::byte> greeting_;  // out, and in
  std::unique_ptr<LinkQueue> const queue_;
  Time last_look_;
  Time::duration waited_{};  // to be ready; then since something came of a transfer
  NcclComm* comm_ = nullptr;
  Phase phase_ = Phase::initialising;
  bool in_progress_ = false;  // of the last call
  bool greeted_ = false;
  std::string failure_;
  std::vector<std::span<std::byte>> shared_;
  std::size_t num_registered_ = 0;

  std::array<Transfer, LinkQueue::kMarks> transfers_{};  // the n-th at n % kMarks, as its mark
  std::uint64_t asked_ = 0;
  std::uint64_t enqueued_ = 0;
  bool called_ = false;  // the library, for the one after those enqueued
  std::uint64_t done_ = 0;

  bool told_to_abort_ = false;
  std::atomic<bool> aborted_ = false;
  std::thread aborter_;
};

}  // namespace

std::unique_ptr<RowLink> make_nccl_link(std::shared_ptr<NcclApi> api, NcclUniqueId const& id, Device& device,
                                        NcclLinkOptions const& options, RowLink::Time now) {
  return std::make_unique<NcclLink>(std::move(api), id, device, options, now);
}

std::string make_nccl_id(NcclApi& api) {
  NcclUniqueId id{};
  NcclResult const result = api.get_unique_id(&id);
  if (result != NcclResult::success)
    throw NcclError("ncclGetUniqueId", static_cast<int>(result), api.error_text(result), "");
  return hexadecimal({reinterpret_cast<unsigned char const*>(id.internal), sizeof id.internal});
}

std::optional<NcclUniqueId> nccl_id_of(std::string const& text) {
  NcclUniqueId id{};
  if (text.size() != 2 * sizeof id.internal) return std::nullopt;
  for (std::size_t i = 0; i < sizeof id.internal; ++i) {
    unsigned char byte = 0;
    char const* const digits = text.data() + 2 * i;
    auto const [end, error] = std::from_chars(digits, digits + 2, byte, 16);
    if (error != std::errc{} || end != digits + 2) return std::nullopt;
    id.internal[i] = static_cast<char>(byte);
  }
  return id;
}

}  // namespace expertmesh
