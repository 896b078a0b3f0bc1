// bench_tokenizer [DIR...]: MB/s of encoding on one core, of the fixtures or of the tokenizers in the directories
// given. Mixed text is prose, code, numbers and many scripts; the other columns are one word of a megabyte, without a
// space.
#include <algorithm>
#include <array>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "coordinator/text/tokenizer.h"
#include "tests/support/goldens_dir.h"

namespace {

namespace fs = std::filesystem;
using namespace expertmesh;

constexpr std::size_t kBytes = std::size_t{1} << 20;

std::string mixed_text() {
  constexpr std::array kLines{
      "The fox, who had long watched the crow, said that her voice must surely be as fine as her feathers; wasn't "
      "it?\n",
      "    def get_value(self, index):\n        return self.values[index] == \"none\"  # 12345\n",
      "In 1987 about 3.14159 percent of 1,000,000 readers (roughly) preferred e-mail: first.last@example.org!\n",
      "Привет, мир! Это пример русского текста, который мы используем.\n",
      "你好，世界！这是一个中文的例子，我们有很多文字可以学习。\n",
      "#include <vector>\nint main() { std::vector<int> v{1, 2, 3}; return v[0] << 2; }\n",
      "Internationalization of interoperability is a characteristically unconstitutional misunderstanding.\n",
      "नमस्ते दुनिया यह हिंदी का एक उदाहरण है 😀 → café naïve\n",
  };
  std::mt19937 random(1);
  std::string text;
  while (text.size() < kBytes) text += kLines[random() % kLines.size()];
  return text;
}

std::string one_word() {
  std::mt19937 random(2);
  std::string text;
  while (text.size() < kBytes) text += static_cast<char>('a' + random() % 26);
  return text;
}

double megabytes_per_second(Tokenizer const& tokenizer, std::string const& text) {
  double best = 0;
  for (int round = 0; round < 3; ++round) {
    std::clock_t const start = std::clock();  // of this process alone: other load on the machine does not count
    std::size_t const count = tokenizer.encode(text, false).size();
    double const seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    if (count > 0) best = std::max(best, static_cast<double>(text.size()) / 1e6 / seconds);
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<fs::path> directories(argv + 1, argv + argc);
  if (directories.empty())
    for (auto const& entry : fs::directory_iterator(test::goldens_dir() / "text/tokenizers"))
      directories.push_back(entry.path());
  std::ranges::sort(directories);
  std::printf("%-20s %12s %12s %12s   MB/s\n", "tokenizer", "mixed text", "one word", "one letter");
  for (auto const& directory : directories) {
    auto const tokenizer = Tokenizer::load(directory);
    if (!tokenizer) continue;
    std::printf("%-20s", directory.filename().c_str());
    for (std::string const& text : {mixed_text(), one_word(), std::string(kBytes, 'a')})
      std::printf(" %12.1f", megabytes_per_second(*tokenizer, text));
    std::printf("\n");
    std::fflush(stdout);
  }
}
