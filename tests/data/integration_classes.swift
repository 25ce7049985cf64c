// The driver's words for semantic models.

import Foundation

func drive(_ words: [String]) throws {
  let size = Size(height: Int(words[1]) ?? 0, width: Int(words[2]) ?? 0)
  let picture = try Picture(rgb: readBytes(words[3]), size: size)
  let found = words[4] == "-" ? try regions(size) : try regions(size, overlap: Int(words[4]) ?? 0)
  var map = try ClassMap(size: size)
  for (i, region) in found.enumerated() {
    let name = "\(words[5])/region\(i)"
    try write("\(name).bin", floats: segmenterInput(picture, region: region).floats)
    if !FileManager.default.fileExists(atPath: "\(name).out") { continue }
    if givesClassMap {
      let given = readWords("\(name).out").map { bits in Int32(bitPattern: bits) }
      try putClassMap(&map, region: region, found: given)
    } else {
      try putLogits(&map, region: region, logits: readFloats("\(name).out"))
    }
  }
  let classes = map.classes.flatMap { value in [UInt8(truncatingIfNeeded: value), UInt8(value >> 8)] }
  try write("\(words[5])/classes.bin", bytes: classes)
  try write("\(words[5])/confidence.bin", floats: map.confidence)
  print(found.count)
}
