#include "common/protocol/step_layout.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "common/protocol/wire_check.h"

namespace expertmesh {
namespace {

static_assert(sizeof(StepHeader) == 80 && sizeof(StepLayer) == 8);
static_assert(std::has_unique_object_representations_v<StepHeader> &&
              std::has_unique_object_representations_v<StepLayer>);
// What seal() and exchange_of() do with a request, they do with a step.
static_assert(offsetof(StepHeader, id) == offsetof(DispatchHeader, id) &&
              offsetof(StepHeader, checksum) == offsetof(DispatchHeader, checksum));

}  // namespace

StepLayout::StepLayout(std::size_t tokens, std::size_t experts_per_token, std::size_t hidden, DType wire)
    : row_bytes(DispatchLayout(hidden, wire).row_bytes()),
      experts_offset(wire_check::aligned(tokens * row_bytes)),
      out_bytes(experts_offset + tokens * experts_per_token * sizeof(std::uint32_t)),
      back_bytes(tokens * experts_per_token * row_bytes) {}

std::size_t most_step_out_bytes(DispatchLimits const& limits, std::size_t hidden, DType wire) {
  return StepLayout(limits.max_rows, 0, hidden, wire).out_bytes + limits.max_entries * sizeof(std::uint32_t);
}

std::size_t write_step(std::span<std::byte> buffer, ExchangeId const& id, std::size_t tokens,
                       std::size_t experts_per_token, std::span<StepLayer const> layers, DType wire) {
  EM_CHECK(tokens > 0 && experts_per_token > 0 && !layers.empty() && layers.front().layer == id.layer,
           "T " << tokens << ", K " << experts_per_token << ", " << layers.size() << " layers");
  std::size_t const bytes = step_message_bytes(layers.size());
  wire_check::check_buffer(buffer.data(), buffer.size(), bytes);
  StepHeader const header{.id = id,
                          .num_tokens = static_cast<std::uint32_t>(tokens),
                          .experts_per_token = static_cast<std::uint32_t>(experts_per_token),
                          .num_layers = static_cast<std::uint32_t>(layers.size()),
                          .wire = DispatchLayout(layers.front().hidden, wire).wire_code()};
  std::memcpy(buffer.data(), &header, sizeof header);
  std::memcpy(buffer.data() + sizeof header, layers.data(), layers.size_bytes());
  return bytes;
}

bool is_step(std::span<std::byte const> message) {
  std::uint32_t magic = 0;
  if (message.size() < sizeof magic) return false;
  std::memcpy(&magic, message.data(), sizeof magic);
  return magic == kStepMagic;
}

std::variant<StepRequest, WireError> parse_step(std::span<std::byte const> message,
                                                RequestExpectation const& expected) {
  StepRequest out;
  StepHeader& h = out.header;
  if (WireError const error = wire_check::check_header(message, kStepMagic, h); error.fault != WireFault::none)
    return error;
  if (WireError const error = wire_check::check_receiver(h, expected); error.fault != WireFault::none) return error;
  auto const refuse = [&](WireFault fault, std::uint64_t seen, std::uint64_t wanted) {
    return WireError{fault, seen, wanted, true, h.id};
  };
  if ((h.id.flags & kFlagRowsApart) == 0)
    return refuse(WireFault::unknown_flags, h.id.flags, h.id.flags | kFlagRowsApart);
  std::uint32_t const wire_code = DispatchLayout(1, expected.wire).wire_code();
  if (h.wire != wire_code) return refuse(WireFault::bad_wire_dtype, h.wire, wire_code);
  if (h.num_tokens > expected.limits.max_rows)
    return refuse(WireFault::too_many_rows, h.num_tokens, expected.limits.max_rows);
  std::uint64_t const slots = std::uint64_t{h.num_tokens} * h.experts_per_token;
  if (slots > expected.limits.max_entries)
    return refuse(WireFault::too_many_entries, slots, expected.limits.max_entries);
  if (slots == 0 || h.num_layers == 0) return refuse(WireFault::bad_size, 0, 1);
  if (h.num_layers > expected.layers.size())
    return refuse(WireFault::unknown_layer, h.num_layers, expected.layers.size());
  std::size_t const bytes = step_message_bytes(h.num_layers);
  if (message.size() != bytes) return refuse(WireFault::bad_size, message.size(), bytes);
  wire_check::check_buffer(message.data(), message.size(), bytes);

  out.layers = {reinterpret_cast<StepLayer const*>(message.data() + sizeof h), h.num_layers};
  if (h.id.layer != out.layers.front().layer) return refuse(WireFault::bad_order, h.id.layer, out.layers.front().layer);
  auto next = expected.layers.begin();  // of those that may come
  for (StepLayer const& layer : out.layers) {
    auto const held = std::ranges::find(expected.layers, layer.layer, &HeldLayer::layer);
    if (held == expected.layers.end()) return refuse(WireFault::unknown_layer, layer.layer, expected.layers.size());
    if (held < next) return refuse(WireFault::bad_order, layer.layer, next == expected.layers.end() ? 0 : next->layer);
    if (layer.hidden != held->hidden) return refuse(WireFault::bad_hidden, layer.hidden, held->hidden);
    next = held + 1;
  }
  out.bytes = bytes;
  return out;
}

}  // namespace expertmesh
