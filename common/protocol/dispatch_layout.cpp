#include "common/protocol/dispatch_layout.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <type_traits>

#include "common/base/check.h"
#include "common/base/checksum.h"
#include "common/protocol/wire_check.h"

namespace expertmesh {
namespace {

using wire_check::aligned;
using wire_check::check_buffer;
using wire_check::check_header;

static_assert(sizeof(ExchangeId) == 48 && sizeof(DispatchHeader) == 80 && sizeof(AnswerHeader) == 96);
static_assert(sizeof(DispatchEntry) == 8);
static_assert(std::has_unique_object_representations_v<DispatchHeader> &&
              std::has_unique_object_representations_v<AnswerHeader>);

constexpr std::uint32_t kWireFloat32 = 1;
constexpr std::uint32_t kWireBfloat16 = 2;

bool are_apart(ExchangeId const& id) {
  return (id.flags & kFlagRowsApart) != 0;
}
// Of so many, those that the message itself holds.
std::size_t rows_inside(ExchangeId const& id, std::size_t count) {
  return are_apart(id) ? 0 : count;
}

std::uint32_t code_of(DType wire) {
  EM_CHECK(wire == DType::f32 || wire == DType::bf16, "wire dtype " << name_of(wire));
  return wire == DType::f32 ? kWireFloat32 : kWireBfloat16;
}

}  // namespace

char const* name_of(WireFault fault) {
  switch (fault) {
    case WireFault::none:
      return "no fault";
    case WireFault::truncated:
      return "shorter than a header";
    case WireFault::bad_magic:
      return "bad magic";
    case WireFault::bad_version:
      return "unknown version";
    case WireFault::unknown_flags:
      return "flags that are not implemented";
    case WireFault::bad_stack:
      return "unknown stack";
    case WireFault::bad_wire_dtype:
      return "another wire dtype";
    case WireFault::bad_checksum:
      return "wrong checksum";
    case WireFault::stale_incarnation:
      return "another incarnation of the worker";
    case WireFault::stale_epoch:
      return "another placement epoch";
    case WireFault::unknown_layer:
      return "no experts held in layer";
    case WireFault::bad_hidden:
      return "another hidden size";
    case WireFault::too_many_rows:
      return "too many rows";
    case WireFault::too_many_entries:
      return "too many entries";
    case WireFault::bad_size:
      return "length differs from what the counts need";
    case WireFault::bad_row_index:
      return "row index out of range";
    case WireFault::bad_expert_index:
      return "expert index out of range";
    case WireFault::wrong_exchange:
      return "answer to another request";
    case WireFault::bad_status:
      return "unknown status";
    case WireFault::bad_order:
      return "layers out of order";
  }
  return "unknown fault";
}

std::string describe(WireError const& error) {
  return std::string(name_of(error.fault)) + " (seen " + std::to_string(error.seen) + ", wanted " +
         std::to_string(error.wanted) + ")";
}

DispatchLimits DispatchLimits::of(std::size_t tokens, std::size_t experts_per_token, std::size_t held) {
  return {.max_rows = tokens, .max_entries = tokens * std::min(experts_per_token, held)};
}

DispatchLayout::DispatchLayout(std::size_t hidden, DType wire)
    : hidden_(hidden), wire_code_(code_of(wire)), row_bytes_(hidden * size_of(wire)) {}

std::size_t DispatchLayout::entries_offset() const {
  return sizeof(DispatchHeader);
}
std::size_t DispatchLayout::request_rows_offset(std::size_t num_entries) const {
  return aligned(entries_offset() + num_entries * sizeof(DispatchEntry));
}
std::size_t DispatchLayout::request_bytes(std::size_t num_rows, std::size_t num_entries) const {
  return request_rows_offset(num_entries) + num_rows * row_bytes_;
}
std::size_t DispatchLayout::answer_rows_offset() const {
  return aligned(sizeof(AnswerHeader));
}
std::size_t DispatchLayout::answer_bytes(std::size_t num_entries) const {
  return answer_rows_offset() + num_entries * row_bytes_;
}

RequestWriter DispatchLayout::write_request(std::span<std::byte> buffer, ExchangeId const& id, std::size_t num_rows,
                                            std::size_t num_entries) const {
  std::size_t const bytes = request_bytes(rows_inside(id, num_rows), num_entries);
  check_buffer(buffer.data(), buffer.size(), bytes);
  RequestWriter out;
  out.header.id = id;
  out.header.num_rows = static_cast<std::uint32_t>(num_rows);
  out.header.num_entries = static_cast<std::uint32_t>(num_entries);
  out.header.hidden = static_cast<std::uint32_t>(hidden_);
  out.header.wire = wire_code_;
  std::memcpy(buffer.data(), &out.header, sizeof out.header);
  out.entries = {reinterpret_cast<DispatchEntry*>(buffer.data() + entries_offset()), num_entries};
  out.rows = buffer.data() + request_rows_offset(num_entries);
  std::byte* const entries_end = buffer.data() + entries_offset() + out.entries.size_bytes();
  std::memset(entries_end, 0, static_cast<std::size_t>(out.rows - entries_end));
  if (are_apart(id)) out.rows = nullptr;
  out.row_bytes = row_bytes_;
  out.bytes = bytes;
  return out;
}

AnswerWriter DispatchLayout::write_answer(std::span<std::byte> buffer, ExchangeId const& id, WireFault status,
                                          std::size_t num_entries) const {
  std::size_t const num_rows = status == WireFault::none ? num_entries : 0;
  std::size_t const bytes = answer_bytes(rows_inside(id, num_rows));
  check_buffer(buffer.data(), buffer.size(), bytes);
  AnswerWriter out;
  out.header.id = id;
  out.header.status = static_cast<std::uint32_t>(status);
  out.header.num_entries = static_cast<std::uint32_t>(num_rows);
  out.header.hidden = static_cast<std::uint32_t>(hidden_);
  out.header.wire = wire_code_;
  std::memset(buffer.data(), 0, answer_rows_offset());
  std::memcpy(buffer.data(), &out.header, sizeof out.header);
  if (!are_apart(id)) out.rows = buffer.data() + answer_rows_offset();
  out.row_bytes = row_bytes_;
  out.bytes = bytes;
  return out;
}

void set_times(std::span<std::byte> answer, std::uint64_t begin_ns, std::uint64_t end_ns) {
  EM_CHECK(answer.size() >= sizeof(AnswerHeader), "answer of " << answer.size() << " bytes");
  std::memcpy(answer.data() + offsetof(AnswerHeader, begin_ns), &begin_ns, sizeof begin_ns);
  std::memcpy(answer.data() + offsetof(AnswerHeader, end_ns), &end_ns, sizeof end_ns);
}

void seal(std::span<std::byte> message) {
  // Requests and answers have flags and checksum in the same places.
  static_assert(offsetof(DispatchHeader, id) == offsetof(AnswerHeader, id) &&
                offsetof(DispatchHeader, checksum) == offsetof(AnswerHeader, checksum));
  DispatchHeader header;
  EM_CHECK(message.size() >= sizeof header, "message of " << message.size() << " bytes");
  std::memcpy(&header, message.data(), sizeof header);
  if ((header.id.flags & kFlagChecksum) == 0) return;
  std::uint64_t const sum = checksum(message.subspan(wire_check::kChecksumEnd));
  std::memcpy(message.data() + offsetof(DispatchHeader, checksum), &sum, sizeof sum);
}

std::optional<ExchangeId> exchange_of(std::span<std::byte const> request) {
  DispatchHeader header;
  if (request.size() < sizeof header) return std::nullopt;
  std::memcpy(&header, request.data(), sizeof header);
  return header.id;
}

std::variant<Request, WireError> parse_request(std::span<std::byte const> message, RequestExpectation const& expected) {
  Request out;
  if (WireError const error = check_header(message, kDispatchMagic, out.header); error.fault != WireFault::none)
    return error;
  auto const& h = out.header;
  if (WireError const error = wire_check::check_receiver(h, expected); error.fault != WireFault::none) return error;
  auto const refuse = [&](WireFault fault, std::uint64_t seen, std::uint64_t wanted) {
    return WireError{fault, seen, wanted, true, h.id};
  };
  auto const held = std::ranges::find(expected.layers, h.id.layer, &HeldLayer::layer);
  if (held == expected.layers.end()) return refuse(WireFault::unknown_layer, h.id.layer, expected.layers.size());
  DispatchLayout const layout(held->hidden, expected.wire);
  if (h.wire != layout.wire_code()) return refuse(WireFault::bad_wire_dtype, h.wire, layout.wire_code());
  if (h.hidden != layout.hidden()) return refuse(WireFault::bad_hidden, h.hidden, layout.hidden());
  if (h.num_rows > expected.limits.max_rows)
    return refuse(WireFault::too_many_rows, h.num_rows, expected.limits.max_rows);
  if (h.num_entries > expected.limits.max_entries)
    return refuse(WireFault::too_many_entries, h.num_entries, expected.limits.max_entries);

  if (are_apart(h.id) && (h.num_rows == 0 || h.num_entries == 0)) return refuse(WireFault::bad_size, 0, 1);
  std::size_t const bytes = layout.request_bytes(rows_inside(h.id, h.num_rows), h.num_entries);
  if (message.size() != bytes) return refuse(WireFault::bad_size, message.size(), bytes);
  check_buffer(message.data(), message.size(), bytes);
  out.entries = {reinterpret_cast<DispatchEntry const*>(message.data() + layout.entries_offset()), h.num_entries};
  for (DispatchEntry const& entry : out.entries) {
    if (entry.row >= h.num_rows) return refuse(WireFault::bad_row_index, entry.row, h.num_rows);
    if (entry.local_expert >= held->num_experts)
      return refuse(WireFault::bad_expert_index, entry.local_expert, held->num_experts);
  }
  if (!are_apart(h.id)) out.rows = message.data() + layout.request_rows_offset(h.num_entries);
  out.row_bytes = layout.row_bytes();
  out.bytes = bytes;
  out.layer_index = static_cast<std::size_t>(held - expected.layers.begin());
  return out;
}

std::variant<Answer, WireError> parse_answer(std::span<std::byte const> message, DispatchLayout const& layout,
                                             ExchangeId const& id, std::size_t num_entries) {
  Answer out;
  if (WireError const error = check_header(message, kAnswerMagic, out.header); error.fault != WireFault::none)
    return error;
  auto const& h = out.header;
  auto const refuse = [&](WireFault fault, std::uint64_t seen, std::uint64_t wanted) {
    return WireError{fault, seen, wanted, true, h.id};
  };
  if (h.id != id) return refuse(WireFault::wrong_exchange, h.id.attempt, id.attempt);
  if (h.status > static_cast<std::uint32_t>(kLastWireFault)) return refuse(WireFault::bad_status, h.status, 0);
  if (h.status != 0) return refuse(static_cast<WireFault>(h.status), h.status, 0);
  if (h.wire != layout.wire_code()) return refuse(WireFault::bad_wire_dtype, h.wire, layout.wire_code());
  if (h.hidden != layout.hidden()) return refuse(WireFault::bad_hidden, h.hidden, layout.hidden());
  if (h.num_entries != num_entries) return refuse(WireFault::bad_size, h.num_entries, num_entries);
  std::size_t const bytes = layout.answer_bytes(rows_inside(id, num_entries));
  if (message.size() != bytes) return refuse(WireFault::bad_size, message.size(), bytes);
  check_buffer(message.data(), message.size(), bytes);
  if (!are_apart(id)) out.rows = message.data() + layout.answer_rows_offset();
  out.row_bytes = layout.row_bytes();
  out.bytes = bytes;
  return out;
}

}  // namespace expertmesh
