// The encoder stack: whole inputs -> the hidden states that a decoder's layers look across to. An input may be longer
// than a step: it goes through each layer part by part, and the work may rest between two parts while others decode.
#pragma once
#include <algorithm>
#include <coroutine>
#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

#include "coordinator/model/token_embedding.h"

namespace expertmesh {

// `co_await rest.after(rows)` goes on at once as long as work is left to the budget, else at the next resume().
class Rest {
 public:
  // rows: of one layer each.
  void allow(std::size_t rows) { left_ = rows; }
  [[nodiscard]] bool resting() const { return waiter_ != nullptr; }
  void resume() { std::exchange(waiter_, nullptr).resume(); }

  struct Awaiter {
    Rest& rest;
    bool await_ready() const { return rest.left_ > 0; }
    void await_suspend(std::coroutine_handle<> waiter) { rest.waiter_ = waiter; }
    void await_resume() {}
  };
  // rows: that were just computed.
  [[nodiscard]] Awaiter after(std::size_t rows) {
    left_ -= std::min(left_, rows);
    return {*this};
  }

 private:
  std::size_t left_ = 0;
  std::coroutine_handle<> waiter_ = nullptr;
};

struct EncoderLimits {
  std::size_t max_rows = 0;   // R of all inputs together
  std::size_t max_chunk = 0;  // T of a part
};

class Encoder {
 public:
  // decoder: its embedding, which may be this one's, too.
  Encoder(ModelSpec const& spec, WeightLoader const& loader, EncoderLimits const& limits,
          TokenEmbedding const& decoder);

  // Rows of all passes over R rows of input: what Rest counts.
  [[nodiscard]] std::size_t work(std::size_t rows) const;
  [[nodiscard]] std::size_t max_rows() const { return x_.view().rows; }
  [[nodiscard]] std::size_t activation_bytes() const { return x_.size_bytes(); }

  // What to do with the encoder's output. encoded: [n,H], at these places.
  using Consumer = std::function<void(MatrixView<float const> encoded, TokenPlaces const& places)>;
  // step: of all R rows; its one place is of `cache`, which holds keys and values of one layer after the other. step,
  // rest and consumer must outlive the task.
  Task forward(FrameArena& arena, StepContext const& step, KvLayer& cache, Rest& rest, Consumer const& consumer);

 private:
  std::size_t max_chunk_;
  TokenEmbedding embedding_;
  std::vector<DecoderLayer> layers_;
  Norm final_norm_;
  Matrix<float> x_;  // [R,H] residual stream
};

}  // namespace expertmesh
