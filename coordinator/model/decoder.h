// The decoder stack: token ids of a step -> hidden states, and the LM head over the rows that need logits. With an
// encoder, what its output is to the layers' cross-attention, too.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "coordinator/model/decoder_layer.h"
#include "coordinator/model/encoder.h"
#include "coordinator/model/kv_cache.h"
#include "coordinator/model/rope_table.h"

namespace expertmesh {

struct DecoderOptions {
  std::size_t max_tokens = 0;                        // T of the largest step
  std::size_t max_input = 0;                         // with an encoder: tokens of an input, or an answer; T at least
  WeightFormat weights = kFloat32Weights;            // of every GEMM but the routers'
  std::function<void(std::size_t)> on_bytes_loaded;  // hears the bytes read since the last call
  Device* device = nullptr;                          // that runs it; null: this host
  ThreadPool* pool = nullptr;                        // that packs the weights; null: the caller alone
};

class Decoder {
 public:
  // source must outlive the decoder: the embedding is looked up in the mapped file.
  Decoder(ModelSpec const& spec, WeightSource const& source, DecoderOptions const& options);

  // What the layers take from the host besides the step's inputs. Before every forward().
  void prepare(StepContext const& step);

  // Leaves the last layer's output, before the final norm, in step.act.x [T,H].
  Task forward(FrameArena& arena, StepContext const& step, KvCache& kv);

  // Null in models without one.
  [[nodiscard]] Encoder* encoder() { return encoder_ ? &*encoder_ : nullptr; }
  // encoded: [R,H] of its output, at `places` -> keys and values of all layers' cross-attention.
  void write_cross(Exec const& exec, MatrixView<float const> encoded, TokenPlaces const& places, KvCache& kv,
                   Activations& act) const;

  // Final norm and LM head for rows of act.x: act.logits[i] = logits of row rows[i]; at most R rows.
  MatrixView<float> logits(Exec const& exec, Activations& act, std::span<std::uint32_t const> rows) const;

 private:
  Decoder(ModelSpec const& spec, WeightLoader const& loader, DecoderOptions const& options);
  std::size_t rope_index(RopeSpec const& spec, DecoderOptions const& options);

  std::size_t hidden_;
  TokenEmbedding embedding_;
  std::optional<Encoder> encoder_;
  std::vector<RopeTable> ropes_;  // layers with the same RopeSpec share its angles
  std::vector<std::size_t> rope_of_layer_;
  std::vector<DecoderLayer> layers_;
  std::optional<Norm> final_norm_;
  PackedLinear lm_head_;  // [V,H]
  float logit_multiplier_;
};

}  // namespace expertmesh
