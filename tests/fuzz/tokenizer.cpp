// Any tokenizer.json is one that encodes and decodes any text, or a ModelError.
#include "coordinator/text/tokenizer.h"
#include "common/base/check.h"
#include "common/base/error.h"
#include "fuzz_folder.h"

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  using namespace expertmesh;
  try {
    auto const tokenizer = Tokenizer::load(test::fuzz_folder("tokenizer.json", data, size));
    EM_CHECK(tokenizer, "the file is there");
    for (char const* text : {"", "Once upon a time", "na\xc3\xafve \xf0\x9f\x90\xb4\n\n  12345", "<s>\xff\x00"})
      for (bool special : {false, true}) {
        auto const ids = tokenizer->encode(text, special);
        for (TokenId id : ids) EM_CHECK(static_cast<std::size_t>(id) < tokenizer->vocab_size(), id);
        (void)tokenizer->decode(ids, special);
      }
  } catch (ModelError const& error) {
    EM_CHECK(*error.what() != '\0', "an error without a word");
  }
  return 0;
}
