// How far the logits of one arithmetic are from those of another.
#pragma once
#include <cstddef>
#include <optional>
#include <span>

namespace expertmesh {

class LogitErrors {
 public:
  // The next row. reference, logits: [V], each known up to a constant of the row, so log-probabilities will do. next:
  // the token that came, if any.
  void add(std::span<float const> reference, std::span<float const> logits, std::optional<std::size_t> next);

  [[nodiscard]] std::size_t num_rows() const { return rows_; }
  // Differences in units of the standard deviation of the reference's logits in a row (all rows together): the root of
  // their mean square, and the largest.
  [[nodiscard]] double rms() const;
  [[nodiscard]] double largest() const;
  // Nats that a row's distribution is from the reference's: the sum of p log(p/q), mean of the rows.
  [[nodiscard]] double divergence() const;
  [[nodiscard]] double same_choice() const;  // share of rows in which both have the same greedy token
  [[nodiscard]] double perplexity() const;   // of the tokens that came; 0: none did
  [[nodiscard]] double reference_perplexity() const;

 private:
  std::size_t rows_ = 0;
  std::size_t logits_ = 0;
  double square_of_reference_ = 0;  // sums, of what is left when a row's mean is taken away
  double square_of_error_ = 0;
  double largest_error_ = 0;
  double divergence_ = 0;
  std::size_t same_ = 0;
  std::size_t came_ = 0;
  double surprise_ = 0;  // nats of the tokens that came
  double reference_surprise_ = 0;
};

}  // namespace expertmesh
