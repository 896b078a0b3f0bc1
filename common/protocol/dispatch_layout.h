// The wire layout of the data plane, as both sides compile it. Per MoE layer and worker one message goes out and one
// comes back:
//
//   request: DispatchHeader | DispatchEntry [entries] | pad to 64 | rows [rows,H] of the wire dtype
//   answer:  AnswerHeader   | pad to 64 | rows [entries,H] of the wire dtype, in entry order
//
// With kFlagRowsApart there are no rows in either: they go from device to device past the messages (RowLink), those of
// the requests and of the answers each in the order of the requests. step_layout.h has another form of the exchange.
//
// An entry is one (token, slot) pair whose expert the worker holds; a token whose experts live on one worker travels as
// one row with several entries. Buffers are 64-byte aligned; numbers little-endian. Every offset is computed here and
// nowhere else.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>

#include "common/base/strong_id.h"
#include "common/tensor/dtype.h"

namespace expertmesh {

constexpr std::uint32_t kDispatchMagic = 0x51444d45;  // "EMDQ"
constexpr std::uint32_t kAnswerMagic = 0x52444d45;    // "EMDR"
constexpr std::uint32_t kDispatchVersion = 4;
constexpr std::uint32_t kDecoderStack = 0;  // the only one: layers are numbered through all stacks of a model
constexpr std::uint32_t kRequestTag =
    0;  // transport tag of all that goes to workers; answers have their attempt's, never 0

// Bits of ExchangeId::flags. A receiver refuses bits it does not implement.
constexpr std::uint32_t kFlagGateOnInput = 1U << 0;  // gate values multiply the rows before the expert
constexpr std::uint32_t kFlagChecksum = 1U << 1;     // `checksum` covers all that follows it
constexpr std::uint32_t kFlagRowsApart = 1U << 2;    // no rows in the message, nor in its answer
constexpr std::uint32_t kFlagComesAgain = 1U << 3;   // of a step (step_layout.h): what a device does for it may be kept
constexpr std::uint32_t kImplementedFlags = kFlagChecksum | kFlagRowsApart | kFlagComesAgain;

// Which exchange a message belongs to. An answer carries its request's, field for field.
struct ExchangeId {
  std::uint64_t coordinator_id = 0;
  std::uint64_t step = 0;
  std::uint32_t coordinator_incarnation = 0;
  std::uint32_t worker_incarnation = 0;
  std::uint32_t placement_epoch = 0;
  std::uint32_t stack = kDecoderStack;
  std::uint32_t layer = 0;  // through all stacks
  std::uint32_t micro_batch = 0;
  std::uint32_t attempt = 0;  // tag of the answer; unique among the exchanges in flight
  std::uint32_t flags = 0;
  bool operator==(ExchangeId const&) const = default;
};

struct DispatchHeader {
  std::uint32_t magic = kDispatchMagic;
  std::uint32_t version = kDispatchVersion;
  ExchangeId id;
  std::uint32_t num_rows = 0;
  std::uint32_t num_entries = 0;
  std::uint32_t hidden = 0;    // H
  std::uint32_t wire = 0;      // code of the wire dtype
  std::uint64_t checksum = 0;  // 0 without kFlagChecksum
};

struct DispatchEntry {
  std::uint32_t row = 0;           // index into the message's rows
  std::uint32_t local_expert = 0;  // index among the experts of this layer that the worker holds
};

// What is wrong with a message. On the wire as AnswerHeader::status: numbers stay.
enum class WireFault : std::uint32_t {
  none = 0,
  truncated = 1,  // shorter than a header
  bad_magic = 2,
  bad_version = 3,
  unknown_flags = 4,
  bad_stack = 5,
  bad_wire_dtype = 6,
  bad_checksum = 7,
  stale_incarnation = 8,  // addressed to another life of this worker
  stale_epoch = 9,        // another placement
  unknown_layer = 10,     // no experts held there
  bad_hidden = 11,
  too_many_rows = 12,
  too_many_entries = 13,
  bad_size = 14,  // length differs from what the counts need
  bad_row_index = 15,
  bad_expert_index = 16,
  wrong_exchange = 17,  // an answer to another request
  bad_status = 18,      // an answer with an unknown status
  bad_order = 19,       // layers of a step that do not come in the order of the model
};
constexpr WireFault kLastWireFault = WireFault::bad_order;
char const* name_of(WireFault fault);

struct AnswerHeader {
  std::uint32_t magic = kAnswerMagic;
  std::uint32_t version = kDispatchVersion;
  ExchangeId id;
  std::uint32_t status = 0;  // WireFault; rows follow only with none
  std::uint32_t num_entries = 0;
  std::uint32_t hidden = 0;
  std::uint32_t wire = 0;
  std::uint64_t checksum = 0;
  // Nanoseconds of the worker's steady clock: when it began with the request, and when the rows lay ready; with rows
  // apart, when all was asked of the device. 0: not said.
  std::uint64_t begin_ns = 0;
  std::uint64_t end_ns = 0;
};

// Largest request and answer of one worker.
struct DispatchLimits {
  std::size_t max_rows = 0;
  std::size_t max_entries = 0;
  bool operator==(DispatchLimits const&) const = default;
  // T tokens a step, K experts a token, at most `held` experts of a layer on the worker.
  static DispatchLimits of(std::size_t tokens, std::size_t experts_per_token, std::size_t held);
};

// A message with everything it refers to. `Bytes` is std::byte or std::byte const.
template <class Header, class Bytes>
struct MessageView {
  Header header;
  Bytes* rows = nullptr;  // [num_rows,H] in a request, [num_entries,H] in an answer; null: apart
  std::size_t row_bytes = 0;
  std::size_t bytes = 0;  // whole message
  [[nodiscard]] Bytes* row(std::size_t index) const { return rows + index * row_bytes; }
};
struct RequestWriter : MessageView<DispatchHeader, std::byte> {
  std::span<DispatchEntry> entries;
};
struct Request : MessageView<DispatchHeader, std::byte const> {
  std::span<DispatchEntry const> entries;
  std::size_t layer_index = 0;  // into RequestExpectation::layers
};
using AnswerWriter = MessageView<AnswerHeader, std::byte>;
using Answer = MessageView<AnswerHeader, std::byte const>;

// The layout for rows of H elements of one wire dtype.
class DispatchLayout {
 public:
  DispatchLayout(std::size_t hidden, DType wire);  // wire: f32 or bf16

  [[nodiscard]] std::size_t hidden() const { return hidden_; }
  [[nodiscard]] std::uint32_t wire_code() const { return wire_code_; }
  [[nodiscard]] std::size_t row_bytes() const { return row_bytes_; }
  [[nodiscard]] std::size_t entries_offset() const;
  [[nodiscard]] std::size_t request_rows_offset(std::size_t num_entries) const;
  [[nodiscard]] std::size_t request_bytes(std::size_t num_rows, std::size_t num_entries) const;
  [[nodiscard]] std::size_t answer_rows_offset() const;
  [[nodiscard]] std::size_t answer_bytes(std::size_t num_entries) const;

  // Lay out a message at the beginning of `buffer` and write its header; entries and rows are the caller's to fill.
  // The buffer must be large enough and 64-byte aligned. An answer with a fault has no rows.
  [[nodiscard]] RequestWriter write_request(std::span<std::byte> buffer, ExchangeId const& id, std::size_t num_rows,
                                            std::size_t num_entries) const;
  [[nodiscard]] AnswerWriter write_answer(std::span<std::byte> buffer, ExchangeId const& id, WireFault status,
                                          std::size_t num_entries) const;

 private:
  std::size_t hidden_;
  std::uint32_t wire_code_;
  std::size_t row_bytes_;
};

// Why a message was refused, with the number that was seen and the one that was wanted (a bound for counts and
// indices).
struct WireError {
  WireFault fault = WireFault::none;
  std::uint64_t seen = 0;
  std::uint64_t wanted = 0;
  bool id_known = false;  // the header was whole and ours, so that an answer can be addressed
  ExchangeId id;
};
std::string describe(WireError const& error);

struct HeldLayer {
  std::uint32_t layer = 0;      // through all stacks
  std::size_t hidden = 0;       // H
  std::size_t num_experts = 0;  // held by the worker
};

struct RequestExpectation {
  Incarnation worker_incarnation;
  PlacementEpoch epoch;
  DType wire = DType::f32;
  DispatchLimits limits;
  std::span<HeldLayer const> layers;
  bool rows_apart = false;  // may come
};

// Writes the times of an answer.
void set_times(std::span<std::byte> answer, std::uint64_t begin_ns, std::uint64_t end_ns);

// Once the message is written: its checksum, if its header says that it has one.
void seal(std::span<std::byte> message);

// What a request says that it belongs to; none if there are not enough bytes for a header. Checks nothing else.
std::optional<ExchangeId> exchange_of(std::span<std::byte const> request);

// Check everything a peer can get wrong; nothing is copied but the header. `message`: exactly the bytes received, in a
// 64-byte aligned buffer.
std::variant<Request, WireError> parse_request(std::span<std::byte const> message, RequestExpectation const& expected);
// The answer to a request with this id and number of entries. A refusal by the worker comes back as its WireError.
std::variant<Answer, WireError> parse_answer(std::span<std::byte const> message, DispatchLayout const& layout,
                                             ExchangeId const& id, std::size_t num_entries);

}  // namespace expertmesh
