// The wire layout of a step in the static form of the exchange: what passes in it, and when, is known when it begins. A
// worker gets one message a step, and answers at once that it takes part:
//
//   step:   StepHeader | StepLayer [layers], in the order of the model
//   answer: AnswerHeader, that of a request of T rows and T*K entries for the first layer whose rows are apart
//
// Then, layer by layer and past the messages (RowLink), the same bytes go to every worker and as many come from each:
//
//   out:  rows [T,H] of the wire dtype | pad to 64 | experts u32 [T*K] by their numbers in the layer, kNoExpert: none
//   back: rows [T*K,H] of the wire dtype, those of slots whose experts the worker holds; the others are left as they
//         happen to be and mean nothing
//
// Every offset is computed here and nowhere else.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <variant>

#include "common/protocol/dispatch_layout.h"

namespace expertmesh {

constexpr std::uint32_t kStepMagic = 0x53444d45;  // "EMDS"

// id: its flags have kFlagRowsApart, its layer is the first one.
struct StepHeader {
  std::uint32_t magic = kStepMagic;
  std::uint32_t version = kDispatchVersion;
  ExchangeId id;
  std::uint32_t num_tokens = 0;         // T
  std::uint32_t experts_per_token = 0;  // K
  std::uint32_t num_layers = 0;
  std::uint32_t wire = 0;      // code of the wire dtype
  std::uint64_t checksum = 0;  // 0 without kFlagChecksum
};

struct StepLayer {
  std::uint32_t layer = 0;   // through all stacks
  std::uint32_t hidden = 0;  // H
};

// What passes by a link for one layer.
struct StepLayout {
  StepLayout(std::size_t tokens, std::size_t experts_per_token, std::size_t hidden, DType wire);
  std::size_t row_bytes;
  std::size_t experts_offset;  // of `out`
  std::size_t out_bytes;
  std::size_t back_bytes;
};

// The largest `out` of a layer within these limits.
std::size_t most_step_out_bytes(DispatchLimits const& limits, std::size_t hidden, DType wire);

struct StepRequest {
  StepHeader header;
  std::span<StepLayer const> layers;  // in the message
  std::size_t bytes = 0;              // whole message
};

constexpr std::size_t step_message_bytes(std::size_t num_layers) {
  return sizeof(StepHeader) + num_layers * sizeof(StepLayer);
}
// tokens, experts_per_token: not 0. layers: not empty. The buffer must be large enough and 64-byte aligned. Returns the
// message's bytes.
std::size_t write_step(std::span<std::byte> buffer, ExchangeId const& id, std::size_t tokens,
                       std::size_t experts_per_token, std::span<StepLayer const> layers, DType wire);

// Whether these bytes claim to be one; checks nothing else.
bool is_step(std::span<std::byte const> message);

// As strict as parse_request(), and like it.
std::variant<StepRequest, WireError> parse_step(std::span<std::byte const> message, RequestExpectation const& expected);

}  // namespace expertmesh
