// Rows from the memory of a device here to that of one device elsewhere, and back, past the hosts. What travels when is
// agreed on by messages of the transport: both ends ask for the same transfers, of the same sizes, in the same order,
// one's send being the other's receive. Nothing here waits; poll() moves a link along.
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "common/base/strong_id.h"
#include "common/tensor/dtype.h"

namespace expertmesh {

using LinkMark = StrongId<struct LinkMarkTag, std::uint64_t>;  // counts a link's transfers, from 1

// One thread at a time.
class RowLink {
 public:
  using Time = std::chrono::steady_clock::time_point;
  enum class State : std::uint8_t {
    connecting,  // no transfers yet
    ready,
    failed,  // for good
  };

  virtual ~RowLink() = default;  // aborts, and waits until that is over

  [[nodiscard]] virtual State state() const = 0;
  [[nodiscard]] virtual std::string failure() const = 0;  // one line; empty unless it has failed
  virtual void poll(Time now) = 0;

  // Rows will be in this memory of the device, which outlives the link: told beforehand, it can be written to and read
  // from the other end without a copy on the way, where the hardware can do that.
  virtual void share(std::span<std::byte> memory) = 0;

  // On a link that is ready; on one that has failed nothing happens. Rows in the device's memory, not empty, which are
  // the link's until the mark is done. They leave when all that the device has been given until then is done; what is
  // received is there when the mark is done, or after hold_device(). type: of received rows, to look for infinities and
  // NaN in them; none: nobody wants to know.
  virtual LinkMark send(std::span<std::byte const> rows) = 0;
  virtual LinkMark recv(std::span<std::byte> rows, std::optional<DType> type = std::nullopt) = 0;
  // Whether all that was asked for is in the device's queue; only then may its device be held.
  [[nodiscard]] virtual bool enqueued() const = 0;
  // What the device is given from now on begins when all that was asked for so far is done.
  virtual void hold_device() = 0;

  // In a recording of the device send() and recv(), without a type, become part of it, and nothing is under way by
  // them; they may wait for the library, never for the other end. hold_device() comes behind the last of them. poll()
  // does nothing meanwhile. As long as there is such a graph, abort() is not over. The graph was launched, behind a
  // hold_device(): the mark is done when the graph is.
  virtual LinkMark launched() = 0;

  static constexpr std::size_t kMostUnderWay = 15;          // transfers; asking for more is a broken invariant
  [[nodiscard]] virtual std::size_t under_way() const = 0;  // asked for and not done; of a link that has failed: any
  [[nodiscard]] virtual bool done(LinkMark mark) const = 0;
  // Of a receive that is done and had a type.
  [[nodiscard]] virtual bool found_infinities(LinkMark mark) const = 0;

  // Ends all transfers, on a thread of its own; the link has failed, for this reason if there was none. keep: memory
  // that transfers may touch until then.
  virtual void abort(std::string const& reason, std::shared_ptr<void const> keep) = 0;
  // Whether that is over.
  [[nodiscard]] virtual bool aborted() const = 0;
};

}  // namespace expertmesh
