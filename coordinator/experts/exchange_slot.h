// One exchange of rows in flight: a layer's rows out to those who hold the experts, and theirs back. Private to
// coordinator/experts.
#pragma once
#include <algorithm>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/base/aligned_buffer.h"
#include "common/moe/placement.h"
#include "common/moe/routing.h"
#include "common/protocol/dispatch_layout.h"
#include "common/tensor/tensor.h"
#include "common/transport/row_link.h"
#include "common/transport/transport.h"
#include "coordinator/cluster/membership.h"
#include "coordinator/cluster/worker_group.h"
#include "coordinator/observe/worker_clock.h"

namespace expertmesh {

// The request and the answer of one leg: the transport's while it is under way.
struct LegMessages {
  AlignedBuffer<std::byte> request;
  AlignedBuffer<std::byte> answer;
  // Of the device, for a member with a link: rows that go out and come back past the messages.
  AlignedBuffer<std::byte> rows_out;
  AlignedBuffer<std::byte> rows_back;
  bool in_use = false;
};

// A leg, wherever it is kept.
struct LegPlace {
  std::uint32_t slot = 0;
  std::uint32_t leg = 0;
};

// One life of a worker, as the exchange keeps it. It outlives the worker until the transport has given every buffer
// back.
struct Member {
  WorkerPeer peer;
  std::string lost_reason;                    // empty while it lives
  std::list<LegMessages> messages;            // one for each exchange in flight; more after a death elsewhere
  std::size_t open_ops = 0;                   // posted, not yet reported
  std::shared_ptr<void const> shared_rows{};  // of the static form, that its link may read
  std::shared_ptr<RowLink> link{};            // null: none, or none any more; goes before what it reads
  bool link_is_ready = false;                 // and its rows go by it
  // Legs by the link that have not got so far that their answers were asked for. The rows of the first are under way,
  // the others wait for it: were they sent as well, its answers would queue behind them at this end, and they behind
  // its answers at the other.
  std::deque<LegPlace> turns{};
  WorkerClock clock{};  // of its times in a trace

  // Nothing touches its buffers any more.
  [[nodiscard]] bool at_rest() const { return open_ops == 0 && (!link || link->aborted()); }

  [[nodiscard]] bool lost() const { return !lost_reason.empty(); }
  [[nodiscard]] Life life() const { return {.worker = peer.worker, .incarnation = peer.incarnation}; }
};

// A layer with experts, and who holds them.
struct PlacedLayer {
  std::uint32_t layer = 0;  // through all stacks
  std::size_t hidden = 0;
  std::size_t num_experts = 0;
  std::optional<LayerPlacement> placement;  // over the members, and this process after them
};

// What one worker has to do for an exchange.
struct Leg {
  enum class State : std::uint8_t {
    waiting,   // sent, not yet answered
    answered,  // rows are here
    lost,      // the worker died owing them: others have to be asked
    replaced,  // others have been asked
  };
  State state = State::waiting;
  std::shared_ptr<Member> member;
  LegMessages* messages = nullptr;  // of the member
  std::size_t num_entries = 0;
  std::chrono::steady_clock::time_point sent;
  bool send_done = false;
  bool recv_done = false;
  // Whose rows go by the link: done when they are here.
  bool by_link = false;
  std::size_t link_bytes_out = 0;
  bool rows_sent = false;
  std::optional<LinkMark> rows_back{};  // once they were asked for
  bool rows_done = false;

  [[nodiscard]] bool done() const { return send_done && recv_done && (!by_link || rows_done); }
  OpId send{};
  OpId recv{};
  ExchangeId id{};
};

struct ExchangeSlot {
  bool in_use = false;
  std::uint64_t number = 0;  // of all exchanges since start
  std::chrono::steady_clock::time_point begin;
  std::size_t layer_index = 0;  // into ExpertModelSpec::layers
  MatrixView<float const> x;    // [T,H] what goes out; unchanged until all is back
  RoutingView routing;
  std::coroutine_handle<> waiter;
  std::vector<Leg> legs;
  std::vector<std::uint32_t> leg_of;          // [T*K] which leg owes each slot's row
  std::vector<std::byte const*> answer_rows;  // [T*K] where each slot's row lies
  std::vector<std::byte const*> device_rows;  // [T*K] or in the device's memory, if not null
  bool any_on_device = false;
  std::string failure;  // why some rows cannot be had at all; empty if they can

  AlignedBuffer<std::byte> wire_rows;  // [T,H] of the wire dtype, as they went out
  bool has_wire_rows = false;          // they are there: somebody wanted them on the host
  AlignedBuffer<std::byte> own_rows;   // [T*K,H] rows that this process ran itself

  // Of the first death that this exchange met.
  struct Recovery {
    bool under_way = false;
    std::chrono::steady_clock::time_point noticed;
    std::string who;
    std::size_t rows = 0;      // asked for again
    std::size_t own_rows = 0;  // of them, run by this process
    double predicted_seconds = 0;
  } recovery;
};

// All rows are back, and exchanges that began earlier are over: no micro-batch overtakes the one before it.
inline bool is_complete(ExchangeSlot const& it, std::span<ExchangeSlot const> all) {
  auto const owes = [](Leg const& leg) { return leg.state == Leg::State::waiting || leg.state == Leg::State::lost; };
  auto const is_before = [&](ExchangeSlot const& other) { return other.in_use && other.number < it.number; };
  return std::ranges::none_of(it.legs, owes) && std::ranges::none_of(all, is_before);
}
// One that is, and somebody waits for; null: there is none.
inline ExchangeSlot* awaited_and_complete(std::span<ExchangeSlot> all) {
  auto const found =
      std::ranges::find_if(all, [&](ExchangeSlot const& slot) { return slot.waiter && is_complete(slot, all); });
  return found == all.end() ? nullptr : &*found;
}

}  // namespace expertmesh
