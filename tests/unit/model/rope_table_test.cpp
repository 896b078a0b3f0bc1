#include "coordinator/model/rope_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "coordinator/model/query_temperature.h"

namespace expertmesh {
namespace {

struct Frequencies {
  char const* name;
  RopeSpec spec;
  std::size_t length;
  std::vector<float> expected;
};
void PrintTo(Frequencies const& f, std::ostream* out) {
  *out << f.name;
}

RopeSpec const kDynamic{.kind = RopeKind::dynamic, .rotary_dim = 16, .factor = 4, .original_max_position = 512};
RopeSpec const kLongrope{.kind = RopeKind::longrope,
                         .rotary_dim = 16,
                         .original_max_position = 32,
                         .magnitude = 1.1F,
                         .long_magnitude = 1.3F,
                         .short_factors = {1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35},
                         .long_factors = {1.5, 1.8, 2.1, 2.4, 2.7, 3.0, 3.3, 3.6}};

// What transformers 5.23 (torch 2.15) makes of such configs, for example:
//   c = LlamaConfig(head_dim=16, max_position_embeddings=512,
//                   rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0})
//   ROPE_INIT_FUNCTIONS["dynamic"](c, None, seq_len=torch.tensor(700))[0]
std::vector<Frequencies> const kReference = {
    {"standard",
     {.kind = RopeKind::standard, .rotary_dim = 16},
     7,
     {1, 0.316227764F, 0.100000001F, 0.0316227786F, 0.00999999978F, 0.00316227786F, 0.00100000005F, 0.000316227786F}},
    {"linear",
     {.kind = RopeKind::linear, .rotary_dim = 16, .factor = 4},
     7,
     {0.25F, 0.079056941F, 0.0250000004F, 0.00790569466F, 0.00249999994F, 0.000790569466F, 0.000250000012F,
      7.90569466e-05F}},
    {"dynamic_512",
     kDynamic,
     512,
     {1, 0.316227764F, 0.100000001F, 0.0316227786F, 0.00999999978F, 0.00316227786F, 0.00100000005F, 0.000316227786F}},
    {"dynamic_513",
     kDynamic,
     513,
     {1, 0.315876395F, 0.0997778997F, 0.0315174833F, 0.00995562971F, 0.00314474851F, 0.000993351801F, 0.0003137764F}},
    {"dynamic_700",
     kDynamic,
     700,
     {1, 0.277927697F, 0.0772438124F, 0.0214681942F, 0.00596660655F, 0.00165828515F, 0.000460883428F, 0.000128092273F}},
    {"dynamic_4000",
     kDynamic,
     4000,
     {1, 0.196205705F, 0.0384966806F, 0.00755326916F, 0.00148199464F, 0.000290775788F, 5.7051875e-05F,
      1.11939034e-05F}},
    {"llama3",
     {.kind = RopeKind::banded, .theta = 500000, .rotary_dim = 32, .factor = 8, .original_max_position = 64},
     7,
     {1, 0.440366626F, 0.079403013F, 0.0106746377F, 0.00470075384F, 0.00207005511F, 0.000911583134F, 0.000401430763F,
      0.000176776681F, 7.78465546e-05F, 3.42810235e-05F, 1.50962178e-05F, 6.64786967e-06F, 2.92749974e-06F,
      1.28917316e-06F, 5.6770881e-07F}},
    {"yarn",
     {.kind = RopeKind::yarn, .rotary_dim = 32, .factor = 40, .original_max_position = 4096},
     7,
     {1, 0.562341332F, 0.316227764F, 0.177827939F, 0.100000001F, 0.0562341288F, 0.0272181761F, 0.0128290169F,
      0.00582142826F, 0.00249036867F, 0.000959977158F, 0.000292145909F, 2.49999994e-05F, 1.40585325e-05F,
      7.90569447e-06F, 4.44569832e-06F}},
    {"yarn_untruncated",
     {.kind = RopeKind::yarn,
      .theta = 150000,
      .rotary_dim = 32,
      .factor = 32,
      .original_max_position = 4096,
      .truncate = false},
     7,
     {1, 0.47478205F, 0.225418001F, 0.107024416F, 0.0508132726F, 0.0193350017F, 0.00679495931F, 0.00209379266F,
      0.000456483918F, 3.83088118e-05F, 1.8188337e-05F, 8.63549576e-06F, 4.09997847e-06F, 1.94659629e-06F,
      9.24208962e-07F, 4.38797855e-07F}},
    {"yarn_of_a_short_context",
     {.kind = RopeKind::yarn, .rotary_dim = 8, .factor = 40, .original_max_position = 16},
     7,
     {1, 0.00249999994F, 0.000250000012F, 2.49999994e-05F}},
    {"longrope_32",
     kLongrope,
     32,
     {1, 0.301169306F, 0.0909090936F, 0.0274980683F, 0.00833333284F, 0.00252982229F, 0.00076923077F, 0.000234242791F}},
    {"longrope_33",
     kLongrope,
     33,
     {0.666666687F, 0.175682098F, 0.0476190485F, 0.0131761562F, 0.00370370364F, 0.00105409266F, 0.000303030305F,
      8.78410501e-05F}}};

class InverseFrequencies : public testing::TestWithParam<Frequencies> {};
TEST_P(InverseFrequencies, AreTheReferences) {
  auto const& [name, spec, length, expected] = GetParam();
  std::vector<float> got(spec.rotary_dim / 2);
  inverse_frequencies(spec, length, got);
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i] / expected[i], 1.0F, 1e-6F) << i;
}
INSTANTIATE_TEST_SUITE_P(Kinds, InverseFrequencies, testing::ValuesIn(kReference),
                         [](auto const& test) { return std::string(test.param.name); });

struct Computed {
  Computed(RopeSpec const& spec, std::vector<std::uint32_t> const& positions,
           std::vector<std::uint32_t> const& prompt_lengths, std::size_t threads = 1)
      : pool(threads), exec(Isa::scalar, pool, {}), table(spec, positions.size()) {
    table.compute(exec, positions, prompt_lengths);
  }
  [[nodiscard]] std::vector<float> row(std::size_t t) const {
    auto const [cos, sin] = table.angles();
    std::vector<float> out(cos.row(t), cos.row(t) + cos.cols);
    out.insert(out.end(), sin.row(t), sin.row(t) + sin.cols);
    return out;
  }
  ThreadPool pool;
  Exec exec;
  RopeTable table;
};

// cos and sin of one token, of `frequencies` and times `magnitude`.
std::vector<float> turned(std::uint32_t position, std::vector<float> const& frequencies, float magnitude) {
  std::vector<float> out;
  for (bool sine : {false, true})
    for (float f : frequencies) {
      float const angle = static_cast<float>(position) * f;
      out.push_back((sine ? std::sin(angle) : std::cos(angle)) * magnitude);
    }
  return out;
}

std::vector<float> frequencies_of(RopeSpec const& spec, std::size_t length) {
  std::vector<float> out(spec.rotary_dim / 2);
  inverse_frequencies(spec, length, out);
  return out;
}

TEST(RopeTable, AnglesAreThoseOfThePositionTimesTheMagnitude) {
  RopeSpec spec = kReference[7].spec;  // yarn
  spec.magnitude = 1.25F;
  std::vector<std::uint32_t> const positions = {0, 1, 77, 131071};
  Computed const c(spec, positions, {4, 4, 100, 9});
  for (std::size_t t = 0; t < positions.size(); ++t)
    EXPECT_EQ(c.row(t), turned(positions[t], frequencies_of(spec, 0), 1.25F)) << t;
}

TEST(RopeTable, TheLengthIsThatOfThePromptUntilTheSequenceIsLonger) {
  struct Token {
    std::uint32_t position, prompt_length, length;
  };
  for (RopeSpec spec : {kDynamic, kLongrope}) {
    spec.original_max_position = 32;
    for (auto const& [position, prompt_length, length] :
         {Token{0, 5, 5}, {4, 5, 5}, {31, 5, 32}, {32, 5, 33}, {0, 40, 40}, {39, 40, 40}, {40, 40, 41}, {3, 32, 32}}) {
      float const magnitude =
          spec.kind == RopeKind::dynamic ? 1.0F : (length > 32 ? kLongrope.long_magnitude : kLongrope.magnitude);
      EXPECT_EQ(Computed(spec, {position}, {prompt_length}).row(0),
                turned(position, frequencies_of(spec, length), magnitude))
          << position << " of a prompt of " << prompt_length;
    }
  }
}

TEST(RopeTable, ATokenHasTheSameBitsInAnyBatchAndThreadCount) {
  std::vector<std::uint32_t> positions, prompt_lengths;
  for (std::uint32_t t = 0; t < 50; ++t) {
    positions.push_back(t * 37 % 600);
    prompt_lengths.push_back(t * 91 % 700);
  }
  for (std::size_t threads : {1, 3}) {
    Computed const all(kDynamic, positions, prompt_lengths, threads);
    for (std::size_t t = 0; t < positions.size(); ++t)
      EXPECT_EQ(all.row(t), Computed(kDynamic, {positions[t]}, {prompt_lengths[t]}).row(0)) << t;
  }
}

TEST(QueryTemperature, RisesWithTheStretchesBehindAToken) {
  ThreadPool pool(2);
  Exec const exec(Isa::scalar, pool, {});
  std::vector<std::uint32_t> const positions = {0, 6, 7, 14, 15, 23, 1000};
  Matrix<float> q(positions.size(), 3);
  std::fill_n(q.view().data, 3 * positions.size(), 2.0F);
  TokenPlaces places;
  places.positions = positions;
  apply_temperature(exec, {.floor = 8, .scale = 0.2}, places, q.view());
  double const stretches[] = {0, 0, 1, 1, 2, 3, 125};
  for (std::size_t t = 0; t < positions.size(); ++t)
    for (std::size_t i = 0; i < 3; ++i)
      EXPECT_NEAR(static_cast<double>(q.view().row(t)[i]), 2 * (1 + 0.2 * std::log(stretches[t] + 1)), 1e-6) << t;
}

}  // namespace
}  // namespace expertmesh
