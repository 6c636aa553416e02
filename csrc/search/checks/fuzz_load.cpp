// libFuzzer's target for snapshots: whatever a file holds, loading it ends in a forest that works
// or in InputFault. The checksums are made right, so that the fuzzer gets beyond them.
#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "../checksum.hpp"
#include "../forest.hpp"
#include "../snapshot.hpp"

using namespace bdc::search;

namespace {

void seal(std::vector<std::byte>& file) {
    if (file.size() < sizeof(Preamble) + kSections * sizeof(Section)) return;
    Preamble preamble;
    std::memcpy(&preamble, file.data(), sizeof preamble);
    preamble.file_bytes = file.size();
    Section sections[kSections];
    std::memcpy(sections, file.data() + sizeof preamble, sizeof sections);
    for (Section& s : sections) {
        if (s.offset <= file.size() && s.bytes <= file.size() - s.offset) {
            s.checksum = checksum(file.data() + s.offset, s.bytes);
        }
    }
    preamble.checksum = checksum(sections, sizeof sections);
    std::memcpy(file.data(), &preamble, sizeof preamble);
    std::memcpy(file.data() + sizeof preamble, sections, sizeof sections);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const int file = memfd_create("snapshot", 0);
    static const std::string path = "/proc/self/fd/" + std::to_string(file);
    const auto* bytes = reinterpret_cast<const std::byte*>(data);
    std::vector<std::byte> content(bytes, bytes + size);
    seal(content);
    if (ftruncate(file, 0) != 0 ||
        pwrite(file, content.data(), content.size(), 0) != ssize_t(content.size())) {
        return 0;
    }
    try {
        Forest forest(Forest::peek(path), 1);
        Forest::load(path, true, forest);
        forest.check();
        std::vector<std::int64_t> trees;
        for (const std::int32_t tree : forest.trees()) trees.push_back(tree);
        for (const std::int64_t tree : trees) forest.best_path(tree, Forest::By::kValue);
        Selection first, selection;
        forest.select(trees, 2, first);
        const std::int64_t count = 2;
        const std::vector<double> returns(first.leaf.size(), 0.5);
        forest.step(first, Ids(&count, 1), returns, {}, {}, 2, selection);
        const std::vector<std::int64_t> leaves(selection.leaf.begin(), selection.leaf.end());
        forest.abandon(leaves, selection.ticket, true);
        forest.compact(false);
    } catch (const InputFault&) {
    }
    return 0;
}
