// Whether a step is faster whole or as two micro-batches, by what steps of its kind have taken. Two overlap the
// coordinator's work with the workers', but read the weights twice: prompts mostly gain, small decodes mostly lose.
// Where the line is depends on the machines, so both forms are tried.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

namespace expertmesh {

enum class StepForm : std::uint8_t { whole, split };

// One thread.
class SplitChoice {
 public:
  // Steps of a kind take about as long for each token.
  struct Kind {
    std::size_t tokens = 0;     // T
    bool decodes_only = false;  // each sequence with one token
  };
  // For the next step of this kind. In the beginning both in turn, then the faster one, and the other once in a while.
  [[nodiscard]] StepForm choose(Kind const& kind);
  // What it has taken.
  void add(Kind const& kind, StepForm form, double seconds);

  // Tries of each form before the first choice. The quickest one counts: the first step of a kind is often slow.
  static constexpr std::uint32_t kTries = 3;
  // Steps until the slower form is tried again: where the faster one is not far ahead, and where it is.
  static constexpr std::uint32_t kSoon = 64;
  static constexpr std::uint32_t kLate = 512;
  static constexpr double kFarAhead = 1.25;

 private:
  struct Form {
    double seconds = 0;  // of a token; an average of those seen last
    std::uint32_t seen = 0;
  };
  struct Seen {
    std::array<Form, 2> forms{};
    std::uint32_t since_other = 0;  // steps since the slower one was tried
  };
  Seen& of(Kind const& kind);

  static constexpr std::size_t kSizes = 32;  // powers of two of tokens
  std::array<std::array<Seen, kSizes>, 2> seen_{};
};

}  // namespace expertmesh
